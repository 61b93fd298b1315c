"""The journal of a run: one JSON object per line, one line per step, valid after a kill at any point.

Steps count from 1; a line of step 0 says what was measured before them.

A training step is repeated after an interruption if its checkpoint had not been written; `JsonLines.keep_until` removes
the lines of such steps (and an incomplete last line) before the run continues.
"""

import json
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from longrl_files.folders import ForeignFolder
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from longrl_files.own_folders import OwnFolder
from longrl_trainer.durable import LINK_CURE, new_file, readable_write_errors
from longrl_trainer.errors import TrainerError

LONGEST_LINE = 64 * 2**20


class JsonLines:
    """An append-only file of JSON objects, each with the `step` it belongs to.

    Args:
        path: The file.
        is_writer: Whether this process adds lines; for others `append` does nothing.
    """

    def __init__(self, path: Path, *, is_writer: bool = True) -> None:
        self.path = path
        self._is_writer = is_writer

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line; readers see it at once."""
        if not self._is_writer:
            return
        line = json.dumps({"step": step, **values}, ensure_ascii=False, allow_nan=False)
        with readable_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = OwnFolder(self.path.parent, error=TrainerError, link_cure=LINK_CURE)
            with folder.extend(self.path.name) as file:
                file.write(f"{line}\n".encode())

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return read_json_lines(self.path)

    def check(self) -> None:
        """Read it once.

        Raises:
            TrainerError: It is no journal.
        """
        for _ in _complete_lines(self.path):
            pass

    def keep_until(self, step: int) -> None:
        """Remove every line of a later step, and an incomplete last line."""
        if self.path.exists():
            with new_file(self.path) as file:
                for line, values in _complete_lines(self.path):
                    if values["step"] <= step:
                        file.write(line)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a journal, in order; none when the file doesn't exist.

    Raises:
        TrainerError: It is no journal.
    """
    return [values for _, values in _complete_lines(path)]


def steps_in(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of steps, without the one of step 0, which says how good the model was before them."""
    return [line for line in lines if line["step"] > 0]


def _complete_lines(path: Path) -> Generator[tuple[bytes, dict[str, Any]]]:
    """The lines as they are written, and what they say; without a last one that was never finished."""
    found = ForeignFolder(path.parent, error=TrainerError, link_cure=LINK_CURE).find(path.name)
    if found is None:
        return
    with found as file:
        for line in iter(partial(file.readline, LONGEST_LINE), b""):
            if not line.endswith(b"\n"):
                if len(line) == LONGEST_LINE:
                    raise TrainerError(
                        f"{path} is not a journal of this trainer: a line has over {LONGEST_LINE:,} bytes"
                    )
                return
            if line.strip():
                yield line, parse_line(path, line)


def parse_line(path: Path, line: bytes, *, error: type[Exception] = TrainerError) -> dict[str, Any]:
    """What a line of the journal at `path` says.

    Raises:
        Exception: Of the given type; it is no line of a journal.
    """
    try:
        values = parse_json(line)
    except UnfitJsonError as caught:
        raise error(f"{path} is not a journal of this trainer: {visible(str(caught))}") from caught
    step = cast(dict[str, Any], values).get("step") if isinstance(values, dict) else None
    if type(step) is not int:
        raise error(f"{path} is not a journal of this trainer: a line without a step, {visible(repr(line), 60)}")
    return cast(dict[str, Any], values)
