"""Every paid answer of a language model, kept in a journal so that none is ever paid for twice.

One JSON line per answer is forced to disk before anybody sees the answer. Answers that come while the disk is busy go
there together, so a slow disk costs waiting, not requests. Only the places of the answers are held in memory.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from longrl_files.json_text import parse_json
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.language_model.accounts.journal import Journal


class StoredResponse(BaseModel):
    """What a server answered, as it came.

    Attributes:
        key: Digest of everything that the answer depends on.
        model: Who answered.
        text: The words.
        finish: Why the server stopped: "stop", "length", "refusal", …
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        cached_prompt_tokens: Those read that the server had at hand.
        reasoning_tokens: Those written that were reasoning.
        call: Name of the call in the ledger that brought it.
        form: What the request had in common with others, as `Request.form` has it.
        adapted: How the request was put otherwise than it was written, because the server wanted it so.
        sampling: What was sent about sampling besides the temperature; nothing in answers of earlier versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    model: str
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0
    call: str = ""
    form: str = ""
    adapted: tuple[str, ...] = ()
    sampling: Mapping[str, int | float] = {}


class ResponseCache:
    """The journal and its index; a context manager that holds the journal for this process.

    Args:
        path: The journal, made when it doesn't exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._tokens = (0, 0)
        self._forms: set[tuple[str, str]] = set()
        self._adapted: dict[str, Counter[str]] = {}
        self._sampling: dict[str, Counter[str]] = {}
        self._unwritten: list[StoredResponse] = []
        self._failure: DataError | None = None
        self._committing = asyncio.Lock()

    def __enter__(self) -> Self:
        self._journal = Journal(self._path, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> StoredResponse | None:
        """Return what was answered to a request, if it ever was."""
        place = self._places.get(key)
        return StoredResponse.model_validate_json(self._journal.read_line(*place)) if place else None

    def put(self, response: StoredResponse) -> None:
        """Keep an answer; when this returns, it is on disk.

        Raises:
            DataError: When it can't be written.
        """
        self._write([response])

    async def store(self, response: StoredResponse) -> None:
        """Keep an answer without holding up others; when this returns, it is on disk.

        Raises:
            DataError: When it can't be written.
        """
        self._unwritten.append(response)
        async with self._committing:
            if self._unwritten:  # else the one before took this answer along
                batch, self._unwritten = self._unwritten, []
                try:
                    await asyncio.to_thread(self._write, batch)
                except DataError as error:
                    self._failure = error
        if self._failure is not None:
            raise self._failure

    def knows_form(self, model: str, form: str) -> bool:
        """Whether a model ever answered a request of a form."""
        return (model, form) in self._forms

    def adaptations(self) -> dict[str, dict[str, int]]:
        """Count for each model the answers to requests that were put otherwise than they were written, by the way."""
        return {model: dict(sorted(counts.items())) for model, counts in sorted(self._adapted.items())}

    def sampling(self) -> dict[str, dict[str, int]]:
        """Count for each model the answers that were asked for with a value of sampling, by name and value."""
        return {model: dict(sorted(counts.items())) for model, counts in sorted(self._sampling.items())}

    def total_tokens(self) -> tuple[int, int]:
        """Sum the tokens read and written over all answers in the journal, of this run and earlier ones."""
        return self._tokens

    def _take(self, offset: int, line: bytes) -> None:
        self._note(StoredResponse.model_validate(parse_json(line)), offset, len(line))

    def _write(self, responses: list[StoredResponse]) -> None:
        lines = [response.model_dump_json().encode() + b"\n" for response in responses]
        offset = self._journal.append(lines, durable=True)
        for response, line in zip(responses, lines, strict=True):
            self._note(response, offset, len(line))
            offset += len(line)

    def _note(self, response: StoredResponse, offset: int, num_bytes: int) -> None:
        self._places[response.key] = (offset, num_bytes)
        read, written = self._tokens
        self._tokens = (read + response.prompt_tokens, written + response.completion_tokens)
        self._forms.add((response.model, response.form))
        counts = self._sampling.setdefault(response.model, Counter())
        counts.update([f"{name}={value:g}" for name, value in response.sampling.items()] or ["the server's own"])
        if response.adapted:
            self._adapted.setdefault(response.model, Counter()).update(response.adapted)
