"""The ways in which a request to a server fails, sorted by what can be done about them.

Some failures pass and are worth another attempt, some concern this request only, and some every request.
"""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import openai

from longvideo_reason_data.model_requests import Outcome


class AttemptError(Exception):
    """An attempt failed in a way that another attempt may not.

    Attributes:
        outcome: What to call it when no attempt succeeds.
        detail: What happened.
        wait_seconds: How long the server wants to be left alone, if it said so.
    """

    def __init__(self, outcome: Outcome, detail: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.outcome, self.detail, self.wait_seconds = outcome, detail, wait_seconds


class NotConnectedError(AttemptError):
    """The server couldn't be reached at all."""


class RejectedError(Exception):
    """The server calls this very request wrong."""


def classify_failure(error: openai.OpenAIError) -> AttemptError | RejectedError:
    """Sort a failure of the client library by what can be done about it."""
    if isinstance(error, openai.APITimeoutError):
        return AttemptError(Outcome.TIMEOUT, "the server took too long")
    if isinstance(error, openai.APIConnectionError):
        return NotConnectedError(Outcome.SERVER_ERROR, brief(error))
    if isinstance(error, openai.APIStatusError):
        wait = retry_after(error.response.headers.get("retry-after"))
        if error.status_code == 429:
            return AttemptError(Outcome.RATE_LIMITED, "the server is busy", wait_seconds=wait)
        if error.status_code in (408, 409) or error.status_code >= 500:
            detail = f"the server failed with status {error.status_code}"
            return AttemptError(Outcome.SERVER_ERROR, detail, wait_seconds=wait)
        return RejectedError(f"the server rejects the request ({brief(error)})")
    return AttemptError(Outcome.INVALID, f"the server's answer breaks the protocol ({brief(error)})")


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


def brief(error: Exception) -> str:
    """Cut an error of another library down to one short line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
