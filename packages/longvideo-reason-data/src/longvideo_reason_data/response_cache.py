"""Every paid answer of a language model, kept in a journal so that none is ever paid for twice.

One JSON line per answer is forced to disk before anybody sees the answer. Memory holds only where each line stands, so
that a journal may be large. A line that a killed process left unfinished is cut off. One process at a time may hold a
journal.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from longvideo_reason_data.errors import DataError, UsageError


class StoredResponse(BaseModel):
    """What a server answered, as it came.

    Attributes:
        key: Digest of everything that the answer depends on.
        model: Who answered.
        text: The words.
        finish: Why the server stopped: "stop", "length", "refusal", …
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    model: str
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


class ResponseCache:
    """The journal and its index; a context manager that holds the journal for this process.

    Args:
        path: The journal, made when it doesn't exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._num_bytes = 0
        self._tokens = (0, 0)

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        except OSError as error:
            raise DataError(
                f"{self._path}: can't be opened ({error.strerror}); choose another output folder"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UsageError(f"{self._path}: another build is using this output folder; wait for it to end") from error
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> StoredResponse | None:
        """Return what was answered to a request, if it ever was."""
        place = self._places.get(key)
        if place is None:
            return None
        start, length = place
        return StoredResponse.model_validate_json(os.pread(self._file.fileno(), length, start))

    def put(self, response: StoredResponse) -> None:
        """Keep an answer; when this returns, it is on disk.

        Raises:
            DataError: When it can't be written.
        """
        line = response.model_dump_json().encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"{self._path}: can't be written ({error.strerror}); free space and run again") from error
        self._note(response, len(line))

    def total_tokens(self) -> tuple[int, int]:
        """Sum the tokens read and written over all answers in the journal, of this run and earlier ones."""
        return self._tokens

    def _note(self, response: StoredResponse, length: int) -> None:
        self._places[response.key] = (self._num_bytes, length)
        self._num_bytes += length
        self._tokens = (self._tokens[0] + response.prompt_tokens, self._tokens[1] + response.completion_tokens)

    def _load(self) -> None:
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # the process was killed while it wrote this one; the answer was never used
            try:
                response = StoredResponse.model_validate(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
                raise DataError(f"{self._path}: line {number} is damaged; remove that line and run again") from error
            self._note(response, len(line))
        self._file.truncate(self._num_bytes)
        self._file.seek(0, os.SEEK_END)
