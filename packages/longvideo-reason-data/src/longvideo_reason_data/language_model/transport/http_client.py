"""The only HTTP client: it accepts no more than the longest possible answer, and asks no other server.

Every request of every method goes through `GuardedHttpClient.send`. It bounds the bytes of an answer as they arrive,
after decompression, and the time until the answer is complete, since a server that sends a byte now and then never
exceeds the usual limit on a single read. It follows no redirect to another address, because prompt, pictures and key
would go there too. Text is passed on without our secrets, and only those headers are passed on that are used.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from longrl_files.messages import visible
from longvideo_reason_data.language_model.transport.redaction import Redaction

MOST_ANSWER_BYTES = 8 * 2**20
"""More than two hundred thousand tokens with every character escaped (six bytes each), or any list of models."""

_MOST_REDIRECTS = 5  # such as a slash at the end or another version of the path; more than that is a circle
_READ_HEADERS = ("retry-after",)


class UnusableAnswerError(httpx2.DecodingError):
    """The answer is too long, or isn't text; the message says which."""


class RefusedRedirectError(httpx2.RequestError):
    """The server redirects to another one; the message says which."""


class GuardedHttpClient(openai.DefaultAsyncHttpxClient):
    """See the module.

    Args:
        redaction: Takes the secrets out of what arrives.
        settings: Of the client.
    """

    def __init__(self, redaction: Redaction, **settings: Any) -> None:
        super().__init__(**settings)
        self._redaction = redaction

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read the answer, both within the request's time.

        Raises:
            UnusableAnswerError: When the answer is too long or isn't text.
            RefusedRedirectError: When the server redirects to another one, or in circles.
            httpx2.RequestError: When the connection fails or takes too long.
        """
        timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        seconds = timeouts.get("read")
        try:
            async with asyncio.timeout(seconds):
                return await self._send_within_origin(request, options.get("auth", httpx2.USE_CLIENT_DEFAULT))
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"no whole answer within {seconds:g} s", request=request) from error
        except httpx2.RequestError as error:  # it may quote what arrived
            error.args = (visible(self._redaction.clean(str(error))),)
            raise
        except (httpx2.InvalidURL, ValueError) as error:  # a redirect that the library can't parse
            said = visible(self._redaction.clean(str(error)))
            raise UnusableAnswerError(f"the answer's headers can't be read ({said})", request=request) from error

    async def _send_within_origin(self, request: httpx2.Request, auth: Any) -> httpx2.Response:
        for _ in range(_MOST_REDIRECTS + 1):
            response = await super().send(request, stream=True, auth=auth, follow_redirects=False)
            try:
                if response.next_request is None:
                    return await self._read(response)
            finally:
                await response.aclose()
                self.cookies.clear()  # a server can't have us send it anything later
            request = _follow(response.next_request, request)
        raise RefusedRedirectError(f"redirects more than {_MOST_REDIRECTS} times", request=request)

    async def _read(self, response: httpx2.Response) -> httpx2.Response:
        """Read an answer up to the limit, and return it decoded and without secrets."""
        request = response.request
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", *request.headers.get("accept-encoding", "").replace(" ", "").split(",")):
            named = visible(self._redaction.clean(encoding), 40)
            raise UnusableAnswerError(f"the answer is compressed as {named}, which wasn't asked for", request=request)
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MOST_ANSWER_BYTES:
                most = f"{MOST_ANSWER_BYTES // 2**20} MiB"
                raise UnusableAnswerError(f"the answer is longer than {most}, the most it may be", request=request)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            if response.is_success:
                raise UnusableAnswerError("the answer is no text in UTF-8", request=request) from error
            text = content.decode(errors="replace")
        headers = {"content-type": "text/plain; charset=utf-8"}
        headers |= {name: response.headers[name] for name in _READ_HEADERS if name in response.headers}
        body = self._redaction.clean_body(text)
        return httpx2.Response(response.status_code, headers=headers, content=body.encode(), request=request)


def _follow(onward: httpx2.Request, request: httpx2.Request) -> httpx2.Request:
    """Take the next step of a redirect, if it leads to the same server and repeats the question."""
    if _origin(onward.url) != _origin(request.url):
        scheme, host, port = _origin(onward.url)
        where = visible(f"{scheme}://{host}:{port}" if port else f"{scheme}://{host}")
        raise RefusedRedirectError(f"redirects to another server, {where}", request=request)
    if onward.method != request.method:
        raise RefusedRedirectError("redirects to another page, away from its model", request=request)
    return onward


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
