"""The chat protocol of OpenAI and of the many servers that follow it: what is sent, and what comes back.

What a server wants otherwise than the protocol has it is found out elsewhere and comes here as an `Adaptation`. Of an
answer only what is needed is read, because servers add what they like, and name the same thing differently.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from longrl_files.json_text import parse_json
from longrl_files.messages import visible
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.adaptation import Adaptation
from longvideo_reason_data.language_model.requests import Request
from longvideo_reason_data.language_model.structured_output import ask_in_words

Content = Sequence[Mapping[str, Any]]

_MOST_COUNTED = 10**9  # tokens of one request; no model reads a thousandth of it
_LONGEST_FINISH = 100  # characters of a word that says why an answer ended


def write_body(request: Request, content: Content, adaptation: Adaptation) -> dict[str, Any]:
    """Write the body of a request as its server wants it.

    Args:
        request: What is asked, as it was written.
        content: The user's message, one entry for each of the request's parts.
        adaptation: What the server wants otherwise.
    """
    sent = adaptation.applied(request)
    shown = [content[place] for place in adaptation.kept_parts(request.parts)]
    if sent.num_pictures < request.num_pictures:
        note = f"{sent.num_pictures} of {request.num_pictures} pictures are shown, evenly spread."
        shown.insert(0, {"type": "text", "text": note})
    schema = request.schema
    knows_schema = schema is not None and not adaptation.leaves_out_schema(schema)
    if schema is not None and not knows_schema:
        shown.append({"type": "text", "text": ask_in_words(schema)})
    is_one_piece = adaptation.joins_text and not sent.num_pictures
    messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    text = "\n\n".join(part["text"] for part in shown if "text" in part)
    messages.append({"role": "user", "content": text if is_one_piece else shown})
    body: dict[str, Any] = {"model": request.model, "messages": messages, adaptation.limit_name: sent.max_tokens}
    if not adaptation.leaves_out("temperature", request.temperature):
        body["temperature"] = request.temperature
    if request.sample_index and not adaptation.leaves_out("seed", request.sample_index):
        body["seed"] = request.sample_index
    if adaptation.sampling:
        body["extra_body"] = adaptation.sampling  # the client library knows one of them only
    if schema is not None and knows_schema:
        form = {"name": "answer", "schema": dict(schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _refuse_text(value: object) -> object:
    """Refuse what would pass for a number: text, true and false."""
    if isinstance(value, str | bool):
        raise ValueError(f"a count is a number, not {visible(repr(value), 40)}")
    return value


# What a server can have counted; anything else isn't a count, and would spoil the books.
_Counted = Annotated[int, Field(ge=0, le=_MOST_COUNTED), BeforeValidator(_refuse_text)]
_READ = ConfigDict(extra="ignore")


class _TextPart(BaseModel):
    model_config = _READ
    text: str | None = None


_Words = str | list[str | _TextPart] | None


class _Message(BaseModel):
    model_config = _READ
    content: _Words = None
    refusal: str | None = None
    reasoning_content: object = None
    reasoning: object = None


class _Choice(BaseModel):
    model_config = _READ
    message: _Message
    finish_reason: Annotated[str, Field(max_length=_LONGEST_FINISH)] | None = None


class _PromptDetails(BaseModel):
    model_config = _READ
    cached_tokens: _Counted | None = None


class _CompletionDetails(BaseModel):
    model_config = _READ
    reasoning_tokens: _Counted | None = None


class _Usage(BaseModel):
    model_config = _READ
    prompt_tokens: _Counted | None = None
    completion_tokens: _Counted | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Completion(BaseModel):
    model_config = _READ
    choices: list[_Choice] | None = None
    usage: object = None


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
    try:
        completion = _Completion.model_validate(parse_json(text))
        usage = _read_usage(completion.usage)
    except ValidationError as error:
        flaw = error.errors()[0]
        place = ".".join(str(step) for step in flaw["loc"] if str(step).replace("_", "").isalnum())
        words = flaw["msg"].partition(" or instance of ")[0]
        raise ValueError(f"{place or 'the answer'}: {words}") from error
    if not completion.choices:
        return Completion(text=None, finish="", usage=usage)
    choice = completion.choices[0]
    message = choice.message
    if message.refusal:
        return Completion(text=message.refusal, finish="refusal", usage=usage)
    finish, words = choice.finish_reason or "stop", _join_text(message.content)
    if finish != "length" and not words.strip():  # the server took the whole answer for reasoning
        thoughts = [said for said in (message.reasoning_content, message.reasoning) if isinstance(said, str)]
        words = next(filter(None, thoughts), "")
    return Completion(text=words, finish=finish, usage=usage)


def _join_text(content: _Words) -> str:
    """The words of a message, which is a string or a list of parts; other parts, such as thoughts, are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part if isinstance(part, str) else part.text or "" for part in content)


def _read_usage(given: object) -> TokenUsage | None:
    """What the server counted; None when it didn't.

    Raises:
        ValueError: When it gives what can't be a count.
    """
    if not isinstance(given, dict):
        return None
    usage = _Usage.model_validate(given)
    if usage.prompt_tokens is None:
        return None
    prompt, written = usage.prompt_tokens_details, usage.completion_tokens_details
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=(prompt and prompt.cached_tokens) or 0,
        completion_tokens=usage.completion_tokens or 0,
        reasoning_tokens=(written and written.reasoning_tokens) or 0,
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
