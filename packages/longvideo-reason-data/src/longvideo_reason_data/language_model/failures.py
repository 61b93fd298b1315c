"""The ways in which a request to a server fails, sorted by what can be done about them.

Some failures pass and are worth another attempt, some concern this request only, and some every request; the last are
errors of the package (`DataError`) and end the build. It matters too whether a failed request can have been charged
for: a refusal is free, but of an answer that got lost on the way nobody knows.

Every server words its errors in a form of its own: an object, a string, a list, JSON inside of JSON, a page of HTML.
`read_rejection` takes from any of them what is said and which parameters are named.
"""

import re
from dataclasses import dataclass, field
from typing import cast

import httpx2
import openai

from longrl_files.json_text import parse_json
from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError, brief
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.gates import retry_after
from longvideo_reason_data.language_model.requests import Outcome
from longvideo_reason_data.language_model.transport.http_client import RefusedRedirectError

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_GATEWAY_STATUSES = (502, 504)
_BUSY_STATUSES = (429, 503, 529)

_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (?:length|size|window|limit|the overflows)|\btoo long\b"
    r"|maximum model len|max_model_len|too many (?:input )?tokens|(?:input|prompt) tokens|reduce the length",
    re.I,
)
_UNWELCOME = re.compile(
    r"content_?(?:filter|policy)|content management policy|responsible_?ai|moderat(?:ion|ed)|\bflagged\b|\bunsafe\b"
    r"|safety|inappropriate|data_inspection",
    re.I,
)
_OF_ITS_PICTURES = re.compile(
    r"(?:invalid|corrupt|broken|truncated|cannot|can't|could not|failed|unable)\b.{0,200}\bimage"
    r"|\bimage\b.{0,200}\b(?:dimension|pixel|resolution|too small|too large|corrupt|truncated)",
    re.I,
)
_LASTING = re.compile(r"not support|unsupported|n't support|not implemented|mmproj|invalid_request", re.I)
_UNKNOWN_CODES = frozenset({"unsupported_parameter", "unknown_parameter", "extra_forbidden", "unknown_field"})
_SAID = ("error", "errors", "message", "msg", "detail", "details", "metadata", "raw", "reason", "reasons", "innererror")
_NAMING = ("param", "parameter", "field", "loc")
_COUNTS = ("n_prompt_tokens", "n_ctx")
_LONGEST_BODY = 20_000
_LONGEST_ALIKE = 400


@dataclass(slots=True, kw_only=True)
class Rejection:
    """What a server says about a request that it calls wrong.

    Attributes:
        status: Of the answer.
        message: Its words, in one line.
        parameters: Parameters that fields of the error name, without what is inside of them.
        codes: Codes and types of the error.
    """

    status: int
    message: str = ""
    parameters: set[str] = field(default_factory=set[str])
    codes: set[str] = field(default_factory=set[str])

    @property
    def _everything(self) -> str:
        return " ".join((self.message, *sorted(self.codes)))

    @property
    def is_too_long(self) -> bool:
        """The prompt, or the prompt and the answer, don't fit into the model's context."""
        return _TOO_LONG.search(self._everything) is not None

    @property
    def is_unwelcome(self) -> bool:
        """A filter of contents holds the request up; another one may pass."""
        return _UNWELCOME.search(self._everything) is not None

    @property
    def is_of_content(self) -> bool:
        """What the request holds is wrong, not how it is put; another one may pass."""
        return self.is_too_long or self.is_unwelcome or _OF_ITS_PICTURES.search(self.message) is not None

    @property
    def is_unknown_parameter(self) -> bool:
        """The server doesn't know a parameter at all."""
        return bool(self.codes & _UNKNOWN_CODES)

    @property
    def is_lasting(self) -> bool:
        """Whether an error that claims to be the server's own is about the request all the same."""
        return self.is_too_long or _LASTING.search(self._everything) is not None

    @property
    def alike(self) -> str:
        """The same for requests that are rejected for the same reason, whatever numbers and names are in it."""
        words = re.sub(r"['\"`][^'\"`]*['\"`]|\b[\da-f]+(?:-[\da-f]+)+\b|\w*\d\w*", "#", self.message[:_LONGEST_ALIKE])
        return f"{self.status} {words[:80]}"

    def __str__(self) -> str:
        return visible(self.message) if self.message else f"status {self.status} without a word"


def read_rejection(status: int, body: str) -> Rejection:
    """Read the error that a server sent, in whatever form.

    Args:
        status: Of the answer.
        body: What came.
    """
    rejection = Rejection(status=status)
    said: list[str] = []
    _take(_parsed(body[:_LONGEST_BODY]), rejection, said)
    rejection.message = " ".join("; ".join(dict.fromkeys(said)).split())
    return rejection


def _parsed(text: str) -> object:
    """The JSON in a text, or the text itself, without the marks of HTML."""
    try:
        return parse_json(text)
    except ValueError:
        return re.sub(r"(?s)<(style|script)\b.*?</\1>|<[^>]*>", " ", text) if "<" in text else text


def _take(value: object, rejection: Rejection, said: list[str], depth: int = 0) -> None:
    """Take words, parameters and codes from a part of an error."""
    if isinstance(value, str):
        inner = _parsed(value) if value.lstrip()[:1] in ("{", "[") and depth < 8 else value
        if isinstance(inner, str):
            said.append(inner.strip())
        else:
            _take(inner, rejection, said, depth + 1)
    elif isinstance(value, list) and depth < 8:
        for item in cast(list[object], value):
            _take(item, rejection, said, depth + 1)
    elif isinstance(value, dict) and depth < 8:
        fields = cast(dict[str, object], value)
        place = _name_parameters(fields, rejection)
        rejection.codes.update(str(fields[name]) for name in ("code", "type") if fields.get(name) is not None)
        words: list[str] = []
        for name in _SAID:
            _take(fields.get(name), rejection, words, depth + 1)
        words += [f"{name} {fields[name]}" for name in _COUNTS if fields.get(name) is not None]
        said += [f"{place}: {word}" if place and place not in word else word for word in words if word]


def _name_parameters(fields: dict[str, object], rejection: Rejection) -> str:
    """Note which parameter an error is about, and give its place in the request."""
    for name in _NAMING:
        found = fields.get(name)
        steps = cast(list[object], found) if isinstance(found, list) else [found] if isinstance(found, str) else []
        path = [step for step in map(str, steps) if step not in ("", "body")]
        if path:
            rejection.parameters.add(re.split(r"[.\[]", path[0])[0])
            return ".".join(path)
    return ""


class AttemptError(Exception):
    """An attempt failed in a way that another attempt may not.

    Attributes:
        outcome: What to call it when no attempt succeeds.
        detail: What happened.
        wait_seconds: How long the server wants to be left alone, if it said so.
        may_be_charged: Whether the server may have done the work and charged for it.
        usage: What the server reported to have charged for, if it did.
        is_overload: Whether fewer requests at a time would have helped.
    """

    def __init__(
        self,
        outcome: Outcome,
        detail: str,
        *,
        wait_seconds: float | None = None,
        may_be_charged: bool = False,
        usage: TokenUsage | None = None,
        is_overload: bool = False,
    ) -> None:
        super().__init__(detail)
        self.outcome, self.detail, self.wait_seconds = outcome, detail, wait_seconds
        self.may_be_charged, self.usage, self.is_overload = may_be_charged, usage, is_overload


class StreamOnlyError(DataError):
    """The server answers in pieces though whole answers are asked for; it may have charged for one."""


class RejectedError(Exception):
    """The server calls this very request wrong.

    Attributes:
        rejection: What it says.
    """

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(f"the server rejects the request ({rejection})")
        self.rejection = rejection


def classify_failure(error: openai.OpenAIError, server: str, model: str) -> Exception:
    """Sort a failure of the client library by what can be done about it.

    Args:
        error: What the library raised.
        server: The server's address, for messages.
        model: The model that was asked.

    Returns:
        An `AttemptError`, a `RejectedError` or a `DataError`, to be raised.
    """
    cause = error.__cause__ or error
    charged = not isinstance(cause, _NEVER_SENT)
    if isinstance(error, openai.APITimeoutError):
        detail = f"{server}: the server took too long ({brief(cause)}); raise timeout_seconds if it needs longer"
        return AttemptError(Outcome.TIMEOUT, detail, may_be_charged=charged, is_overload=True)
    if isinstance(cause, RefusedRedirectError):
        return DataError(f"{server}: the server {brief(cause)}; what is asked goes to --base-url only")
    if isinstance(cause, httpx2.DecodingError):
        return AttemptError(Outcome.INVALID, f"{server}: {brief(cause)}", may_be_charged=True)
    if isinstance(error, openai.APIConnectionError):
        return AttemptError(Outcome.CONNECTION, f"the connection broke off ({brief(cause)})", may_be_charged=charged)
    if isinstance(error, openai.APIStatusError):
        rejection = read_rejection(error.status_code, error.response.text)
        return _classify_status(rejection, server, model, retry_after(error.response.headers.get("retry-after")))
    return AttemptError(
        Outcome.INVALID, f"the server's answer breaks the protocol ({brief(error)})", may_be_charged=True
    )


def classify_answer(body: str, server: str, model: str, usage: TokenUsage | None, *, flaw: str) -> Exception:
    """Sort an answer that holds none, which may be an error under the status of a success.

    Args:
        body: What came.
        server: The server's address, for messages.
        model: The model that was asked.
        usage: What the server counted, if it did.
        flaw: What is wrong with the answer when it isn't an error.

    Returns:
        As `classify_failure`.
    """
    if re.match(r"\s*(?:event|data|id|retry)?:", body):
        return StreamOnlyError(
            f"{server}: the server answers {model!r} in a stream only, expected whole answers; "
            "check --base-url, or put a server before it that gathers them"
        )
    rejection = read_rejection(400, body)
    statuses = [int(code) for code in rejection.codes if re.fullmatch(r"[45]\d\d", code)]
    rejection.status = max(statuses, default=400)
    if '"error"' in body and rejection.message:
        failure = _classify_status(rejection, server, model, None)
        if isinstance(failure, AttemptError):  # it said that all went well, and may have charged for it
            failure.may_be_charged, failure.usage = usage is None, usage
        return failure
    return AttemptError(Outcome.INVALID, flaw, may_be_charged=True, usage=usage)


def _classify_status(rejection: Rejection, server: str, model: str, wait: float | None) -> Exception:
    status = rejection.status
    if status == 402 or "insufficient_quota" in rejection.codes:
        return DataError(f"{server}: the account has no credit left; fill it up and run again to go on")
    if status in (401, 403) and not (status == 403 and rejection.is_unwelcome):
        return DataError(f"{server}: the server refuses the key in OPENAI_API_KEY (status {status})")
    if status == 404:
        return DataError(f"{server}: the server doesn't serve {model!r} ({rejection}); check --model and --base-url")
    if status == 429:
        return AttemptError(Outcome.RATE_LIMITED, "the server is busy", wait_seconds=wait, is_overload=True)
    is_of_server = status in (408, 409) or status >= 500
    if is_of_server and not (status in (500, 501) and rejection.is_lasting):
        return AttemptError(
            Outcome.SERVER_ERROR,
            f"the server failed with status {status}" + (f" ({rejection})" if rejection.message else ""),
            wait_seconds=wait,
            may_be_charged=status in _GATEWAY_STATUSES,  # the server behind the gateway may have answered
            is_overload=status in _BUSY_STATUSES,
        )
    return RejectedError(rejection)
