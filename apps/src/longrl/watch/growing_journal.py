"""Reading a journal that another process is writing, from where the last look ended.

A run that goes on from a checkpoint replaces its journals by shorter ones; then everything is read anew, and the
journal counts as another edition.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl_files.folders import ForeignFolder
from longrl_trainer.durable import LINK_CURE
from longrl_trainer.runs.journal import LONGEST_LINE, parse_line


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line is in its file.

    Attributes:
        start: Offset of its first byte.
        num_bytes: Its length with the line feed.
    """

    start: int
    num_bytes: int


class GrowingJournal:
    """The complete lines of a run's journal.

    Args:
        folder: Folder of the run.
        name: Name of the journal.

    Attributes:
        edition: Grows each time the journal was replaced.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.edition = 0
        self._files = ForeignFolder(folder, error=AppUsageError, link_cure=LINK_CURE)
        self._path, self._name = folder / name, name
        self._file_id: tuple[int, int] | None = None
        self._end = 0

    def look(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Give the lines that were added since the last look; all of them after a new edition.

        Raises:
            AppUsageError: The file is no journal.
        """
        found = self._files.find(self._name)
        if found is None:
            self._begin_edition(None)
            return
        with found as file:
            status = os.fstat(file.fileno())
            file_id = (status.st_dev, status.st_ino)
            if file_id != self._file_id or status.st_size < self._end:
                self._begin_edition(file_id)
            file.seek(self._end)
            for line in iter(partial(file.readline, LONGEST_LINE), b""):
                if not line.endswith(b"\n"):
                    return
                place = Place(self._end, len(line))
                self._end += len(line)
                yield place, parse_line(self._path, line, error=AppUsageError)

    def read(self, place: Place) -> dict[str, Any] | None:
        """Read a line again; None if the journal was replaced since."""
        found = self._files.find(self._name)
        if found is None:
            return None
        with found as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._file_id:
                return None
            file.seek(place.start)
            return parse_line(self._path, file.read(place.num_bytes), error=AppUsageError)

    def _begin_edition(self, file_id: tuple[int, int] | None) -> None:
        if self._file_id is not None or self._end:
            self.edition += 1
        self._file_id, self._end = file_id, 0
