"""The journal of a run: one JSON object per line, one line per step, valid after a kill at any point.

A training step is repeated after an interruption if its checkpoint had not been written; `JsonLines.keep_until` removes
the lines of such steps (and an incomplete last line) before the run continues.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrl_trainer.durable import readable_write_errors, write_text
from longrl_trainer.errors import TrainerError


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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return read_json_lines(self.path)

    def keep_until(self, step: int) -> None:
        """Remove every line of a later step, and an incomplete last line."""
        if self.path.exists():
            kept = [line for line in read_json_lines(self.path) if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a journal, in order; none if the file doesn't exist."""
    if not path.exists():
        return []
    complete, _, _torn = path.read_text(encoding="utf-8").rpartition("\n")
    try:
        return [json.loads(line) for line in complete.split("\n") if line]
    except json.JSONDecodeError as error:
        raise TrainerError(f"{path} is not a journal of this trainer: {error}") from error
