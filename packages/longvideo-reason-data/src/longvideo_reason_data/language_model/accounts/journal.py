"""Files of JSON lines that only grow and survive a kill at any moment.

A line is whole or it isn't there: what a killed process left of its last line is cut off when the file is opened again.
Any other damage is an error, because then something that was paid for would be lost without a word. One process at a
time may hold a journal.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from longrl_files.folders import ForeignFolder
from longvideo_reason_data.errors import DataError, UsageError

MAX_LINE_BYTES = 64 * 2**20
"""Most bytes of a line; an answer of a server has an eighth at most."""


class Journal:
    """An open journal.

    Args:
        path: The file, made when it doesn't exist.
        take: Is given every line that is there already, and its offset in bytes; raises ValueError, KeyError or
            AttributeError at one that it can't read.

    Raises:
        UsageError: When another process holds it.
        DataError: When it can't be opened, or a line can't be read.
    """

    def __init__(self, path: Path, take: Callable[[int, bytes], None]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = ForeignFolder(path.parent, error=DataError).open_to_append(path.name)
        except OSError as error:
            raise DataError(f"{path}: can't be opened ({error.strerror}); choose another output folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UsageError(f"{path}: another build is using this output folder; wait for it to end") from error
        self._writing = threading.Lock()
        self._size = self._cut_unfinished_line()
        try:
            self._read(take)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file, after what is being written."""
        with self._writing:
            self._file.close()

    def read_line(self, offset: int, num_bytes: int) -> bytes:
        """Read a line again."""
        return os.pread(self._file.fileno(), num_bytes, offset)

    def append(self, lines: Sequence[bytes], *, durable: bool) -> int:
        """Write lines, each with its line feed.

        Args:
            lines: What to write.
            durable: Whether to wait until the disk has them. Without, they survive the end of this process but not
                that of the machine.

        Returns:
            The offset of the first.

        Raises:
            DataError: When they can't be written.
        """
        content = b"".join(lines)
        with self._writing:
            offset = self._size
            try:
                written = 0
                while written < len(content):
                    written += os.write(self._file.fileno(), content[written:])
                if durable:
                    os.fsync(self._file.fileno())
            except OSError as error:
                with suppress(OSError):
                    self._file.truncate(offset)  # no half line may come to stand before a whole one
                raise DataError(
                    f"{self.path}: can't be written ({error.strerror}); free space and run again"
                ) from error
            self._size += len(content)
        return offset

    def _read(self, take: Callable[[int, bytes], None]) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(iter(lambda: self._file.readline(MAX_LINE_BYTES), b""), start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("too long")
                take(offset, line)
            except (ValueError, KeyError, AttributeError) as error:
                raise DataError(f"{self.path}: line {number} is damaged; remove that line and run again") from error
            offset += len(line)

    def _cut_unfinished_line(self) -> int:
        """Return the size of what is whole, and drop the rest."""
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            place = os.pread(self._file.fileno(), end - start, start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)
        return end
