"""The ways in which a request to a server fails, sorted by what can be done about them.

Some failures pass and are worth another attempt, some concern this request only, and some every request; the last are
errors of the package (`DataError`) and end the build. It matters too whether a failed request can have been charged
for: a refusal is free, but of an answer that got lost on the way nobody knows.
"""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import openai

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.requests import Outcome

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_GATEWAY_STATUSES = (502, 504)
_BUSY_STATUSES = (429, 503, 529)


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


class RejectedError(Exception):
    """The server calls this very request wrong.

    Attributes:
        parameter: What is wrong about it, if the server said so.
    """

    def __init__(self, detail: str, parameter: str | None) -> None:
        super().__init__(detail)
        self.parameter = parameter


def classify_failure(error: openai.OpenAIError | TimeoutError, server: str, model: str) -> Exception:
    """Sort a failure of the client library by what can be done about it.

    Args:
        error: What the library raised.
        server: The server's address, for messages.
        model: The model that was asked.

    Returns:
        An `AttemptError`, a `RejectedError` or a `DataError`, to be raised.
    """
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        charged = not isinstance(error.__cause__, _NEVER_SENT)
        return AttemptError(Outcome.TIMEOUT, "the server took too long", may_be_charged=charged, is_overload=True)
    if isinstance(error, openai.APIConnectionError):
        charged = not isinstance(error.__cause__, _NEVER_SENT)
        detail = f"the connection broke off ({brief(error.__cause__ or error)})"
        return AttemptError(Outcome.CONNECTION, detail, may_be_charged=charged)
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error, server, model)
    return AttemptError(
        Outcome.INVALID, f"the server's answer breaks the protocol ({brief(error)})", may_be_charged=True
    )


def _classify_status(error: openai.APIStatusError, server: str, model: str) -> Exception:
    status, wait = error.status_code, retry_after(error.response.headers.get("retry-after"))
    is_busy = status in _BUSY_STATUSES
    if status == 402 or error.code == "insufficient_quota":
        return DataError(f"{server}: the account has no credit left; fill it up and run again to go on")
    if status in (401, 403):
        return DataError(f"{server}: the server refuses the key in OPENAI_API_KEY (status {status})")
    if status == 404:
        return DataError(f"{server}: the server doesn't serve {model!r} ({brief(error)}); check --model")
    if status == 429:
        return AttemptError(Outcome.RATE_LIMITED, "the server is busy", wait_seconds=wait, is_overload=True)
    if status in (408, 409) or status >= 500:
        return AttemptError(
            Outcome.SERVER_ERROR,
            f"the server failed with status {status}",
            wait_seconds=wait,
            may_be_charged=status in _GATEWAY_STATUSES,  # the server behind the gateway may have answered
            is_overload=is_busy,
        )
    return RejectedError(f"the server rejects the request ({brief(error)})", error.param)


def retry_after(header: str | None) -> float | None:
    """Read how long the server wants to be left alone, in seconds: it gives a number or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return None
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (zoned - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def brief(error: BaseException) -> str:
    """Cut an error of another library down to one short line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
