"""The chat protocol of OpenAI and of the many servers that follow it: what is sent, and what comes back.

Servers differ in what they know. `Dialect` remembers what one turned out not to know: JSON schemas, which then go into
the prompt as words, or `max_tokens`, which newer models call by another name. Of an answer only what is needed is
read, because servers add what they like.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from longvideo_reason_data.language_model.accounts.prices import Count, TokenUsage
from longvideo_reason_data.language_model.requests import Request
from longvideo_reason_data.language_model.structured_output import ask_in_words

Content = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a server knows of the protocol.

    Attributes:
        knows_schemas: It can hold an answer to a JSON schema.
        limit_name: What it calls the longest answer.
    """

    knows_schemas: bool = True
    limit_name: str = "max_tokens"

    def body(self, request: Request, content: Content) -> dict[str, Any]:
        """Write the body of a request."""
        schema = request.schema
        if schema is not None and not self.knows_schemas:
            content = [*content, {"type": "text", "text": ask_in_words(schema)}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        body: dict[str, Any] = {
            "model": request.model,
            "messages": messages,
            self.limit_name: request.max_tokens,
            "temperature": request.temperature,
        }
        if request.sample_index:
            body["seed"] = request.sample_index
        if schema is not None and self.knows_schemas:
            form = {"name": "answer", "schema": dict(schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def simpler(self, request: Request, parameter: str | None) -> "Dialect | None":
        """Think of another way to put a request that the server called wrong, or None when there is none.

        Args:
            request: The request.
            parameter: What the server named as wrong, if anything.
        """
        if parameter == "max_tokens" and self.limit_name == "max_tokens":
            return replace(self, limit_name="max_completion_tokens")
        if request.schema is not None and self.knows_schemas:
            return replace(self, knows_schemas=False)
        return None


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    message: _Message
    finish_reason: str | None = None


class _PromptDetails(BaseModel):
    model_config = ConfigDict(extra="ignore")
    cached_tokens: Count | None = None


class _CompletionDetails(BaseModel):
    model_config = ConfigDict(extra="ignore")
    reasoning_tokens: Count | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")
    choices: list[_Choice] = []
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer of the server.

    Attributes:
        text: Its words, or those of its refusal; None when it holds no answer at all.
        finish: Why it stopped.
        usage: The tokens that it counted, or None when it didn't say.
    """

    text: str | None
    finish: str
    usage: TokenUsage | None


def read_completion(text: str) -> Completion:
    """Read what the server sent.

    Raises:
        ValueError: When it isn't what the protocol says.
    """
    completion = _Completion.model_validate(json.loads(text))
    usage = None
    if completion.usage is not None:
        prompt, written = completion.usage.prompt_tokens_details, completion.usage.completion_tokens_details
        usage = TokenUsage(
            prompt_tokens=completion.usage.prompt_tokens,
            cached_prompt_tokens=(prompt and prompt.cached_tokens) or 0,
            completion_tokens=completion.usage.completion_tokens,
            reasoning_tokens=(written and written.reasoning_tokens) or 0,
        )
    if not completion.choices:
        return Completion(text=None, finish="", usage=usage)
    choice = completion.choices[0]
    refusal = choice.message.refusal
    return Completion(
        text=refusal or choice.message.content or "",
        finish="refusal" if refusal else choice.finish_reason or "stop",
        usage=usage,
    )


def write_content(request: Request) -> Content:
    """Write the user's message as the protocol wants it, with the pictures inside.

    Raises:
        DataError: When a picture can't be made.
    """
    content: list[dict[str, Any]] = []
    for part in request.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            data = base64.b64encode(part.load()).decode()
            content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    return content
