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
    CONNECTION = "connection"
    DAMAGED_INPUT = "damaged_input"
    OVER_BUDGET = "over_budget"
    REJECTED = "rejected"
    """The server calls the request wrong."""
    ONLY_REASONING = "only_reasoning"
    """All tokens were used up before the answer began."""


PICTURE_TOKENS = 16384
"""Most tokens of a picture in the Qwen-VL family as it is published; most others make fewer of it."""

TEMPLATE_TOKENS = 1024
"""Most tokens that a chat template, with a system message of its own, and our words around a schema may add."""


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

    @property
    def num_pictures(self) -> int:
        """Pictures in the message."""
        return sum(isinstance(part, Picture) for part in self.parts)

    @property
    def form(self) -> str:
        """What requests have in common that a server takes or rejects alike: their prompt, and whether they show."""
        return f"{self.prompt_digest[:16]} {'with' if self.num_pictures else 'without'} pictures"

    def most_prompt_tokens(self, picture_tokens: int) -> int:
        """Bound the tokens that a server can count for the prompt: no tokenizer makes two tokens of one byte.

        Args:
            picture_tokens: Most tokens of one picture; only the model's makers know it.
        """
        schema = json.dumps(self.schema) if self.schema is not None else ""
        texts = [self.system, schema, *(part for part in self.parts if isinstance(part, str))]
        return TEMPLATE_TOKENS + sum(len(text.encode()) for text in texts) + self.num_pictures * picture_tokens


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a request.

    Attributes:
        outcome: How it ended.
        text: With ANSWERED and TRUNCATED the words, otherwise what is to be said about it in one line.
        value: The JSON object, where one was asked for and the answer holds it.
    """

    outcome: Outcome
    text: str
    value: Mapping[str, Any] | None = field(default=None, hash=False)


def without_reasoning(text: str) -> str:
    """Give what an answer says once it has thought; nothing when it never came to an end of that."""
    _, mark, behind = text.rpartition("</think>")
    return "" if not mark and behind.lstrip().startswith("<think>") else behind


class Asks(Protocol):
    """Whoever answers requests: a client of a server, or something that hands them on to one."""

    async def ask(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            DataError: When no request at all can be answered.
        """
        ...
