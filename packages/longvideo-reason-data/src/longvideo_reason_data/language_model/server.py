"""The server behind an address: how it is reached, and whether it is of any use, found out before anything is paid.

The API key is read from the environment and goes nowhere but into the requests.
"""

import asyncio
import os
import re
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import BaseModel, ConfigDict

from longrl_files.json_text import parse_json
from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError, UsageError, brief
from longvideo_reason_data.language_model.transport.http_client import GuardedHttpClient, RefusedRedirectError
from longvideo_reason_data.language_model.transport.redaction import API_KEY_VARIABLE, Redaction, read_secrets

_NO_KEY = "none"
_CHECK_SECONDS = 30.0


class ModelServer:
    """A server that speaks the OpenAI protocol.

    Args:
        base_url: Its address up to and including `/v1`.
        num_parallel: Most requests under way at a time.
        timeout_seconds: Longest wait for one answer.

    Attributes:
        redaction: Takes the key out of what the server says.

    Raises:
        UsageError: When the address or the key can't be one.
    """

    def __init__(self, base_url: str, *, num_parallel: int, timeout_seconds: float) -> None:
        self.base_url = base_url
        _check_address(base_url)
        self.redaction = Redaction(read_secrets())
        self._check_seconds = min(_CHECK_SECONDS, timeout_seconds)
        # Each request has a connection of its own: on a kept one, an answer too many would be taken for the next.
        connections = httpx2.Limits(max_connections=num_parallel + 1, max_keepalive_connections=0)
        self.client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=_read_key(),
            max_retries=0,
            timeout=timeout_seconds,
            http_client=GuardedHttpClient(self.redaction, limits=connections),
        )
        self._checked_models: set[str] = set()
        self._checking = asyncio.Lock()

    async def check_model(self, model: str) -> None:
        """Ask the server once whether it serves a model.

        Raises:
            UsageError: When it serves others only.
            DataError: When it can't be reached or refuses the key.
        """
        async with self._checking:
            if model in self._checked_models:
                return
            try:
                raw = await self.client.models.with_raw_response.list(timeout=self._check_seconds)
                served = _read_models(raw.text)
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                if isinstance(cause, httpx2.DecodingError):
                    raise DataError(f"{self.base_url}: the server's list of models: {brief(cause)}") from error
                what = f"the server {brief(cause)}" if isinstance(cause, RefusedRedirectError) else ""
                what = what or f"no server answers there ({brief(cause)})"
                raise DataError(f"{self.base_url}: {what}; check --base-url") from error
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                given = "refuses the key in" if os.environ.get(API_KEY_VARIABLE) else "wants a key; set"
                raise DataError(f"{self.base_url}: the server {given} {API_KEY_VARIABLE}") from error
            except openai.OpenAIError:
                served = set[str]()  # not every server lists its models; the first request will tell
            # Some list a model with its folder or its tag and take it without.
            names = {name for item in served for name in (item, item.rpartition("/")[2], item.removesuffix(":latest"))}
            if served and model not in names:
                known = ", ".join(visible(name, 60) for name in sorted(served)[:5])
                raise UsageError(f"{self.base_url}: the server doesn't serve {model!r}; it serves {known}")
            self._checked_models.add(model)

    async def is_there(self) -> bool:
        """Tell whether anything answers at the address, if only with a refusal."""
        try:
            await self.client.models.with_raw_response.list(timeout=self._check_seconds)
        except openai.APIConnectionError:
            return False
        except openai.OpenAIError:
            return True
        return True


def check_access(base_url: str) -> None:
    """Find out without a word to the server whether the address and the key can be ones.

    Raises:
        UsageError: When one of them can't.
    """
    _check_address(base_url)
    _read_key()


def _read_models(text: str) -> set[str]:
    """Read the names of models; none from a list of another form."""
    try:
        listed = _ModelList.model_validate(parse_json(text))
    except ValueError:
        return set()
    return {item.id for item in listed.data}


class _ListedModel(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str


class _ModelList(BaseModel):
    model_config = ConfigDict(extra="ignore")
    data: list[_ListedModel]


def _check_address(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(base_url)  # whoever sends the requests has to understand it too
    except (ValueError, httpx2.InvalidURL):
        is_address = False
    else:
        if parts.username or parts.password:
            raise UsageError(f"--base-url: the address holds a password; put the key into {API_KEY_VARIABLE}")
        is_address = is_address and not parts.query and not parts.fragment
    if not is_address or not base_url.isprintable() or set(base_url) & set(" \\"):
        shown = visible(_without_secrets(base_url), 100)
        raise UsageError(f"--base-url {shown!r}: not an address of a server; expected http://HOST:PORT/v1")


def _without_secrets(base_url: str) -> str:
    """What of an address, or of something that is none, can be shown: neither a password nor a query."""
    place = re.split(r"[?#]", base_url, maxsplit=1)[0]
    before, mark, host = place.rpartition("@")
    scheme = re.match(r"[\w.+-]*://", before)
    return f"{scheme[0] if scheme else ''}…@{host}" if mark else place


def _read_key() -> str:
    key = os.environ.get(API_KEY_VARIABLE)
    if key is None:
        return _NO_KEY  # servers of one's own want none
    if not key.strip():
        raise UsageError(f"{API_KEY_VARIABLE} is empty; set it to a key, or unset it for a server that wants none")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{API_KEY_VARIABLE} holds a space, a line break or a character that no key has; set it anew")
    return key
