"""Asking a language model behind any server that speaks the OpenAI protocol.

Each request is answered from the journal when it was ever answered before; otherwise it is sent, repeated where that
can help, and written down before it is used. A request that fails ends in a typed outcome, so that the caller can drop
the item and say why; only what concerns every request alike (no server, no such model, a wrong key) is an error.

The API key is read from the environment and goes nowhere but into the request. Prices are not known here.
"""

import asyncio
import base64
import json
import os
import random
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import openai
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.model_failures import AttemptError, NotConnectedError, RejectedError, brief, classify_failure
from longvideo_reason_data.model_requests import Outcome, Reply, Request
from longvideo_reason_data.response_cache import ResponseCache, StoredResponse

API_KEY_VARIABLE = "OPENAI_API_KEY"
_LONGEST_WAIT_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts of one run.

    Attributes:
        num_made: Answers that the server gave.
        num_cached: Answers taken from the journal, or shared with an equal request under way.
        num_failed: Attempts without an answer, by outcome; they were not charged for.
    """

    num_made: int = 0
    num_cached: int = 0
    num_failed: dict[Outcome, int] = field(default_factory=dict[Outcome, int])


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")
    choices: list[_Choice]
    usage: _Usage | None = None


class LanguageModel:
    """A client of one server; an async context manager.

    Args:
        base_url: Address of the server up to and including `/v1`.
        cache: The journal of answers.
        num_parallel: Most requests under way at a time.
        num_attempts: How often a request is sent before it is given up.
        timeout_seconds: Longest wait for one answer.
        first_wait_seconds: Wait before the second attempt; doubled each time, unless the server names a time.

    Attributes:
        ledger: What was asked in this run.
    """

    def __init__(
        self,
        base_url: str,
        cache: ResponseCache,
        *,
        num_parallel: int = 16,
        num_attempts: int = 6,
        timeout_seconds: float = 300.0,
        first_wait_seconds: float = 1.0,
    ) -> None:
        self.ledger = Ledger()
        self._base_url = base_url
        self._cache = cache
        self._num_attempts = num_attempts
        self._first_wait_seconds = first_wait_seconds
        self._free = asyncio.Semaphore(num_parallel)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._checked_models: set[str] = set()
        self._checking = asyncio.Lock()
        self._takes_schema = True
        key = os.environ.get(API_KEY_VARIABLE) or "none"
        try:
            self._client = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=timeout_seconds)
        except (openai.OpenAIError, ValueError) as error:
            raise UsageError(f"--base-url {base_url}: not an address of a server ({error})") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Reply:
        """Answer a request from the journal or by the server; equal requests at one time are sent once.

        Raises:
            DataError: When the server can't be reached, refuses the key or doesn't serve the model.
        """
        stored = self._cache.get(request.key)
        if stored is not None:
            self.ledger.num_cached += 1
            return _judge(stored)
        task = self._under_way.get(request.key)
        if task is None:
            task = asyncio.create_task(self._ask_server(request))
            self._under_way[request.key] = task
            task.add_done_callback(lambda _: self._under_way.pop(request.key, None))
        else:
            self.ledger.num_cached += 1
        return await task

    async def _ask_server(self, request: Request) -> Reply:
        async with self._free:
            await self._check_server(request.model)
            try:
                content = await asyncio.to_thread(_content_of, request)
            except DataError as error:
                return Reply(outcome=Outcome.DAMAGED_INPUT, text=str(error))
            attempts = AsyncRetrying(
                stop=stop_after_attempt(self._num_attempts),
                retry=retry_if_exception_type(AttemptError),
                wait=self._wait_seconds,
                reraise=True,
            )
            try:
                stored = await attempts(self._attempt, request, content)
            except NotConnectedError as error:
                raise DataError(
                    f"{self._base_url}: the server stopped answering ({error}); run again to go on"
                ) from error
            except AttemptError as error:
                return Reply(outcome=error.outcome, text=error.detail)
            except RejectedError as error:
                return Reply(outcome=Outcome.INVALID, text=str(error))
            self._cache.put(stored)
            self.ledger.num_made += 1
            return _judge(stored)

    async def _attempt(self, request: Request, content: list[dict[str, Any]]) -> StoredResponse:
        """Send a request once, or twice when the server turns out not to know schemas."""
        try:
            with_schema = self._takes_schema  # another request may find out while this one is under way
            try:
                return await self._send(request, content, with_schema=with_schema)
            except openai.BadRequestError:
                if request.schema is None or not with_schema:
                    raise
                response = await self._send(request, content, with_schema=False)
                self._takes_schema = False
                return response
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise DataError(f"{self._base_url}: the server refuses the key in {API_KEY_VARIABLE}") from error
        except openai.NotFoundError as error:
            raise DataError(
                f"{self._base_url}: the server doesn't serve {request.model!r} ({brief(error)}); check --model"
            ) from error
        except AttemptError as error:
            failure = error
        except openai.OpenAIError as error:
            failure = classify_failure(error)
        except (json.JSONDecodeError, ValidationError, UnicodeDecodeError) as error:
            failure = AttemptError(Outcome.INVALID, f"the server's answer breaks the protocol ({brief(error)})")
        if isinstance(failure, AttemptError):
            self.ledger.num_failed[failure.outcome] = self.ledger.num_failed.get(failure.outcome, 0) + 1
        raise failure

    async def _send(self, request: Request, content: list[dict[str, Any]], *, with_schema: bool) -> StoredResponse:
        messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        body: dict[str, Any] = {
            "model": request.model,
            "messages": messages,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.sample_index:
            body["seed"] = request.sample_index
        if request.schema is not None and with_schema:
            schema = {"name": "answer", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        raw = await self._client.chat.completions.with_raw_response.create(**body)
        completion = _Completion.model_validate(json.loads(raw.text))
        if not completion.choices:
            raise AttemptError(Outcome.INVALID, "the server's answer holds no choice")
        choice, usage = completion.choices[0], completion.usage or _Usage()
        return StoredResponse(
            key=request.key,
            model=request.model,
            text=choice.message.refusal or choice.message.content or "",
            finish="refusal" if choice.message.refusal else choice.finish_reason or "stop",
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    async def _check_server(self, model: str) -> None:
        """Before the first request for a model, ask whether the server is there and serves it."""
        async with self._checking:
            if model in self._checked_models:
                return
            try:
                served = {item.id async for item in await self._client.models.list()}
            except openai.APIConnectionError as error:
                raise DataError(
                    f"{self._base_url}: no server answers there ({brief(error)}); check --base-url"
                ) from error
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise DataError(f"{self._base_url}: the server refuses the key in {API_KEY_VARIABLE}") from error
            except (openai.OpenAIError, ValueError, TypeError, AttributeError):
                served = set[str]()  # not every server lists its models; the first request will tell
            if served and model not in served:
                known = ", ".join(sorted(served)[:5])
                raise UsageError(f"{self._base_url}: the server doesn't serve {model!r}; it serves {known}")
            self._checked_models.add(model)

    def _wait_seconds(self, state: RetryCallState) -> float:
        """Wait as long as the server says, or ever longer with a random part."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, AttemptError) and error.wait_seconds is not None:
            return min(error.wait_seconds, _LONGEST_WAIT_SECONDS)
        wait = self._first_wait_seconds * 2 ** (state.attempt_number - 1)
        return min(wait, _LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.25)


def _judge(stored: StoredResponse) -> Reply:
    """Turn an answer of the server into an outcome."""
    outcome = Outcome.ANSWERED
    if stored.finish == "length":
        outcome = Outcome.TRUNCATED
    elif stored.finish in ("refusal", "content_filter"):
        outcome = Outcome.REFUSED
    elif not stored.text.strip():
        outcome = Outcome.INVALID
    return Reply(outcome=outcome, text=stored.text)


def _content_of(request: Request) -> list[dict[str, Any]]:
    """Write the user's message as the protocol wants it, with the pictures inside."""
    content: list[dict[str, Any]] = []
    for part in request.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            data = base64.b64encode(part.load()).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    return content
