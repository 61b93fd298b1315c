"""A folder filled by stages, each run once and rerun only when its inputs change.

    .owner                      held by the running process
    stages/NAME.started.json    inputs of a started stage, and the time it has taken so far
    stages/NAME.json            written last: inputs, result, time, memory and the outputs of a finished stage

A stage's inputs are its settings and the digests of the stages before it. After a kill at any moment, the next process
finds either a finished stage, which it reuses, or a started one with the same inputs, which it continues; anything else
is removed and redone, and the reason is printed. The module doesn't know what a stage does, only that a stage can
continue from its partial output.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from longrl.errors import AppUsageError
from longrl.process_memory import memory_bytes, return_memory
from longrl.run_files import find_kind, find_object
from longrl_files.own_folders import OwnFolder
from longrl_trainer.config.recipes import first_difference
from longrl_trainer.durable import LINK_CURE, remove_partial, write_json
from longrl_trainer.errors import TrainerError
from longvideo_reason_data.ownership import OWNER_NAME, own_folder

FORMAT_VERSION = 1
STAGES_NAME = "stages"
HEARTBEAT_SECONDS = 2.0
# A folder may contain these before the first stage and still be usable.
OWN_NAMES = frozenset({STAGES_NAME, OWNER_NAME})

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: Also the name of its file.
        settings: All configuration that affects its result, as plain JSON values; no absolute paths.
        after: Stages whose outputs it reads.
        outputs: Files and folders that it writes, relative to the pipeline's folder; nothing else writes there, except
            in `notes`.
        notes: Folders inside its outputs where later stages note what they found out about files. They don't count when
            the outputs are compared with what the stage left.
        is_kept: Whether its outputs stay when it is redone, because it goes on from them, such as from paid answers.
        run: Does the work, or the rest of it; returns what later stages and the report need, as plain JSON.
    """

    name: str
    settings: Mapping[str, Any]
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_kept: bool = False
    run: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStage:
    """The contents of `stages/NAME.json`."""

    format_version: int
    name: str
    digest: str
    settings: dict[str, Any]
    after: dict[str, str]
    """Digest of every stage before it."""
    seconds: float
    """Summed over interruptions."""
    peak_memory_bytes: int
    outputs: dict[str, dict[str, int]]
    """Number and size of the files of every output."""
    result: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _BegunStage:
    """What `stages/NAME.started.json` holds."""

    digest: str
    settings: dict[str, Any]
    after: dict[str, str]
    seconds: float
    peak_memory_bytes: int


class Pipeline:
    """Runs stages in one folder; see `open_pipeline`."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder
        self._say = say
        self._finished: dict[str, FinishedStage] = {}
        remove_partial(folder, STAGES_NAME)

    def result(self, name: str) -> dict[str, Any]:
        """The result of a stage in this process's pipeline."""
        return self._finished[name].result

    def seconds(self, name: str) -> float:
        """The time that a stage in this process's pipeline took, summed over interruptions."""
        return self._finished[name].seconds

    def require_own(self, names: Collection[str]) -> None:
        """Refuse the folder of another pipeline, before anything in it is replaced.

        Raises:
            AppUsageError: A stage was run here that isn't one of this pipeline.
        """
        found = {path.name.split(".")[0] for path in (self.folder / STAGES_NAME).glob("*.json")}
        if others := sorted(found - set(names)):
            raise AppUsageError(
                f"{self.folder} contains another pipeline (stage `{others[0]}`); choose another --output"
            )

    def run(self, stage: Stage) -> FinishedStage:
        """Reuse, continue or run a stage."""
        settings = _plain(stage.settings)
        after = {name: self._finished[name].digest for name in stage.after}
        digest = digest_json({"version": FORMAT_VERSION, "name": stage.name, "settings": settings, "after": after})
        finished = read_finished(self.folder, stage.name)
        found = find_kind(_BegunStage, self.folder, f"{STAGES_NAME}/{stage.name}.started.json")
        begun = None if found is None else asdict(found)
        if finished is not None:
            reason = self._reason_to_redo(stage, finished, digest, settings, after)
            if reason is None:
                self._begun_path(stage.name).unlink(missing_ok=True)
                self._say(f"{stage.name}: reused")
                self._finished[stage.name] = finished
                return finished
            self._say(f"{stage.name}: redo: {reason}")
        elif begun is not None and begun["digest"] == digest:
            self._say(f"{stage.name}: continues after {begun['seconds']:.0f} s")
            return self._work(stage, begun)
        elif begun is not None:
            self._say(f"{stage.name}: redo: {describe_change(begun['settings'], begun['after'], settings, after)}")
        else:
            self._say(f"{stage.name}: starts")
        self._clear(stage)
        return self._work(
            stage,
            {"digest": digest, "settings": settings, "after": after, "seconds": 0.0, "peak_memory_bytes": 0},
        )

    def _reason_to_redo(
        self, stage: Stage, finished: FinishedStage, digest: str, settings: dict[str, Any], after: dict[str, str]
    ) -> str | None:
        if finished.digest != digest:
            return describe_change(finished.settings, finished.after, settings, after)
        for output, size in finished.outputs.items():
            found = self._measure(stage, output)
            if found != size:
                return f"{output} has changed ({_describe_size(size)}, now {_describe_size(found)})"
        return None

    def _clear(self, stage: Stage) -> None:
        """Remove a stage. Its JSON files are removed before its outputs, so that a kill in between is harmless."""
        self._finished_path(stage.name).unlink(missing_ok=True)
        self._begun_path(stage.name).unlink(missing_ok=True)
        for output in () if stage.is_kept else stage.outputs:
            OwnFolder(self.folder, error=AppUsageError, link_cure=LINK_CURE).remove_tree(output)

    def _work(self, stage: Stage, begun: dict[str, Any]) -> FinishedStage:
        with _heartbeat(self._begun_path(stage.name), begun):
            result = _plain(stage.run())
            return_memory()
        finished = FinishedStage(
            format_version=FORMAT_VERSION,
            name=stage.name,
            digest=begun["digest"],
            settings=begun["settings"],
            after=begun["after"],
            seconds=round(begun["seconds"], 3),
            peak_memory_bytes=begun["peak_memory_bytes"],
            outputs={output: self._measure(stage, output) for output in stage.outputs},
            result=result,
        )
        write_json(self._finished_path(stage.name), asdict(finished))
        self._begun_path(stage.name).unlink(missing_ok=True)
        self._say(f"{stage.name}: done in {finished.seconds:.1f} s")
        self._finished[stage.name] = finished
        return finished

    def _measure(self, stage: Stage, output: str) -> dict[str, int]:
        return measure(self.folder / output, apart_from=[self.folder / note for note in stage.notes])

    def _finished_path(self, name: str) -> Path:
        return self.folder / STAGES_NAME / f"{name}.json"

    def _begun_path(self, name: str) -> Path:
        return self.folder / STAGES_NAME / f"{name}.started.json"


@contextmanager
def open_pipeline(folder: Path, say: Say, own_names: Collection[str] = ()) -> Generator[Pipeline]:
    """Own a folder exclusively while the block runs.

    Args:
        folder: The folder; made if it isn't there.
        say: Prints a line.
        own_names: What else may be in it before the first stage.

    Raises:
        AppUsageError: The folder can't be written, or contains something else.
        DataError: Another process is using it, or it can't be locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in {*OWN_NAMES, *own_names})
    except OSError as error:
        raise AppUsageError(f"{folder}: can't be written ({error.strerror}); choose another --output") from error
    if strangers and not (folder / STAGES_NAME).is_dir():
        raise AppUsageError(f"{folder} contains something else ({strangers[0]}); choose another --output")
    with own_folder(folder):
        (folder / STAGES_NAME).mkdir(exist_ok=True)
        yield Pipeline(folder, say)


def read_finished(folder: Path, name: str) -> FinishedStage | None:
    """A finished stage of a folder; None if it isn't finished or was written by another version."""
    name = f"{STAGES_NAME}/{name}.json"
    values = find_object(folder, name)
    if values is None or values.get("format_version") != FORMAT_VERSION:
        return None
    return find_kind(FinishedStage, folder, name)


def describe_change(
    old_settings: dict[str, Any], old_after: dict[str, str], settings: dict[str, Any], after: dict[str, str]
) -> str:
    """Why a stage must be redone: the first setting that changed, or the stage before it."""
    difference = first_difference(old_settings, settings)
    if difference is not None:
        return difference
    changed = [name for name in after if old_after.get(name) != after[name]]
    return f"{' and '.join(changed)} changed" if changed else "it belongs to another version of the pipeline"


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def measure(path: Path, *, apart_from: Sequence[Path] = ()) -> dict[str, int]:
    """Number and size of the files at or below a path, but not of those below the folders in `apart_from`."""
    found = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path] if path.is_file() else []
    files = [file for file in found if not any(file.is_relative_to(folder) for folder in apart_from)]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


@contextmanager
def _heartbeat(path: Path, begun: dict[str, Any]) -> Generator[None]:
    """Keep writing the time spent so far to disk while the block runs, because after a kill it is too late."""
    seconds_before, peak_before, started = float(begun["seconds"]), int(begun["peak_memory_bytes"]), monotonic()
    stopped = threading.Event()

    def note() -> None:
        begun["seconds"] = seconds_before + monotonic() - started
        begun["peak_memory_bytes"] = max(peak_before, begun["peak_memory_bytes"], memory_bytes())

    def beat() -> None:
        while not stopped.wait(HEARTBEAT_SECONDS):
            note()
            with suppress(TrainerError):  # a full disk stops the stage itself, with a better message
                write_json(path, begun)

    note()
    write_json(path, begun)
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        note()
    # Not in `finally`: after an error on a full disk, writing again would hide the cause.
    write_json(path, begun)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values after a round trip through JSON."""
    return json.loads(json.dumps(dict(values), allow_nan=False))


def _describe_size(size: Mapping[str, int]) -> str:
    return f"{size['files']} files, {size['bytes']} bytes"
