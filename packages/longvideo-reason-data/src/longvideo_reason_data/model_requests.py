"""What is asked of a language model and what comes of it, without a word about how it is sent.

Two requests with the same key are the same request, in this run or a later one. The key covers everything that the
answer depends on except the address of the server: a model of one name is taken to be one model.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    INVALID = "invalid"
    SERVER_ERROR = "server_error"
    DAMAGED_INPUT = "damaged_input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image in a message.

    Attributes:
        identity: What it shows and how it was made, for instance the video's digest, the frame and the size. It stands
            for the picture in the cache, so that a repeated build needn't decode the video again.
        load: Makes the JPEG; called only when the request is really sent.
    """

    identity: str
    load: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model.

    Attributes:
        model: Name of the model on the server.
        parts: The user's message: texts and pictures in order.
        system: The system message, if any.
        max_tokens: Longest answer.
        temperature: 0 for the likeliest answer.
        schema: JSON schema of the answer, or None for plain text.
        sample_index: Tells several samples of one request apart.
        prompt_digest: Digest of the prompt files that the message was made from.
    """

    model: str
    parts: tuple[str | Picture, ...]
    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    sample_index: int = 0
    prompt_digest: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that the answer depends on."""
        content = {
            "model": self.model,
            "system": self.system,
            "parts": [{"text": part} if isinstance(part, str) else {"picture": part.identity} for part in self.parts],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "schema": self.schema,
            "sample_index": self.sample_index,
            "prompt_digest": self.prompt_digest,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a request: with ANSWERED and TRUNCATED the words, otherwise what the server said about it."""

    outcome: Outcome
    text: str


class Asks(Protocol):
    """Whoever answers requests: a client of a server, or something that hands them on to one."""

    async def ask(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            DataError: When no request at all can be answered.
        """
        ...
