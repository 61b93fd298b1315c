"""Where the numbers of a run go besides its journal: TensorBoard's files, Weights & Biases, or Trackio.

The journal is what a run continues from and what `longrl watch` shows; a tracker is for comparing many runs with the
tools that a team has already. It is written by the first rank only and never read.
"""

import hashlib
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from longrl_files.messages import visible
from longrl_files.own_folders import OwnFolder
from longrl_trainer.config.effects import named_settings
from longrl_trainer.config.sections import TrackerName
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import LINK_CURE
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.runs.journal import JsonLines

TENSORBOARD_FOLDER = "tensorboard"
PROJECT = "longrl"
FLUSH_SECONDS = 10


class _Tracker(Protocol):
    """Takes the numbers of one step after the other, by their dotted names."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def require_tracker(name: TrackerName) -> None:
    """Refuse a tracker whose library isn't installed.

    Raises:
        TrainerUsageError: It isn't.
    """
    if name != "none" and find_spec(name) is None:
        extra = "" if name == "tensorboard" else f"longrl-trainer[{name}], which has "
        raise TrainerUsageError(f'tracker="{name}": {name} isn\'t installed; install {extra}{name}, or set "none"')


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Give the numbers of a journal's line by their dotted names; what isn't a number is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


class TrackedJournal(JsonLines):
    """A journal of steps whose numbers also go to a tracker.

    The tracker is opened with the first step, so that a run that has none left doesn't open it. Numbers of steps that
    are repeated are replaced where the tracker allows it.

    Args:
        path: The journal.
        tracker: The name of the tracker.
        settings: The run's settings, which are shown beside its numbers.
        is_writer: Whether this process adds lines; for others `append` does nothing.
    """

    def __init__(
        self, path: Path, tracker: TrackerName, settings: Mapping[str, Any], *, is_writer: bool = True
    ) -> None:
        super().__init__(path, is_writer=is_writer)
        self._name: TrackerName = tracker if is_writer else "none"
        self._settings = settings
        self._tracker: _Tracker | None = None

    @classmethod
    def of(cls, config: TrainingConfig, *, is_writer: bool) -> "TrackedJournal":
        """The journal of a run's metrics."""
        return cls(config.output / "metrics.jsonl", config.tracker, named_settings(config), is_writer=is_writer)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line, and give its numbers to the tracker.

        Raises:
            TrainerError: The tracker can't be opened.
        """
        super().append(step, values)
        if self._tracker is None:
            self._tracker = _open(self._name, self.path.parent, self._settings, after_step=step - 1)
        if self._tracker is not None:
            self._tracker.log(step, flatten(values))

    def close(self) -> None:
        """Write what the tracker still has in memory."""
        if self._tracker is not None:
            self._tracker.close()


def _open(name: TrackerName, folder: Path, settings: Mapping[str, Any], *, after_step: int) -> _Tracker | None:
    if name == "none":
        return None
    try:
        if name == "tensorboard":
            return _TensorBoard(folder, after_step=after_step)
        return _Project(name, folder, settings)
    except TrainerError:
        raise
    except Exception as error:  # of a library that speaks to a server
        reason = visible(f"{type(error).__name__}: {error}")
        raise TrainerError(f'tracker="{name}": can\'t be opened ({reason}); set another one, or "none"') from error


class _TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir FOLDER` shows those of all runs in it."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        OwnFolder(folder, error=TrainerError, link_cure=LINK_CURE).make_folder(TENSORBOARD_FOLDER)
        self._writer = SummaryWriter(
            str(folder / TENSORBOARD_FOLDER), purge_step=after_step + 1, flush_secs=FLUSH_SECONDS
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        self._writer.close()


class _Project:
    """A run in a project on a server, or in its library's own files; both libraries are used in the same way."""

    def __init__(self, library: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._library: Any = import_module(library)
        place = folder.resolve()
        own_name = f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"  # for going on with it later
        options = {"id": own_name, "dir": str(folder)} if library == "wandb" else {}
        self._library.init(project=PROJECT, name=own_name, config=dict(settings), resume="allow", **options)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._library.log(dict(numbers), step=step)

    def close(self) -> None:
        self._library.finish()
