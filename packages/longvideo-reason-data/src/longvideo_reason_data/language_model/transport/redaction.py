r"""Taking our secrets out of what a server says, however it spells them.

A server may repeat the key of a request in an error, an answer or a header: as it is, with JSON's or a URL's escapes
(`\u0073`, `%73`, `%2573`), as HTML's references, or inside of the base64 of an Authorization header. One pattern finds
them all, also where the server cut a long key short. It is applied to everything that arrives, before anything else
sees it.

A key of less than `SHORTEST_SECRET` characters is not looked for: it protects nothing, and servers of one's own are
often given a word such as EMPTY, which would then be missing from answers.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from typing import cast

from longrl_files.json_text import parse_json

API_KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_SECRET = 8
REDACTED = "…"

_CUSTOM_HEADERS_VARIABLE = "OPENAI_CUSTOM_HEADERS"  # sent by the client library with every request
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|pass", re.I)
_SHORTEST_CUT = 16  # characters of a longer key that are taken for it


def read_secrets() -> list[str]:
    """Find what the client library sends from the environment and nobody else may see."""
    secrets = [os.environ.get(API_KEY_VARIABLE, "")]
    for line in os.environ.get(_CUSTOM_HEADERS_VARIABLE, "").split("\n"):
        name, _, value = line.partition(":")
        if _SECRET_HEADER.search(name):
            secrets += value.split()[-1:]  # behind the word Bearer or Basic
    return [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]


class Redaction:
    """Takes secrets out of text.

    Args:
        secrets: What must not be repeated; those that are too short are passed over.
    """

    def __init__(self, secrets: list[str]) -> None:
        spellings = [
            spelling for secret in secrets if len(secret) >= SHORTEST_SECRET for spelling in _spellings_of(secret)
        ]
        self._pattern = re.compile("|".join(spellings), re.I) if spellings else None

    def clean(self, text: str) -> str:
        """Give a text without the secrets."""
        return self._pattern.sub(REDACTED, text) if self._pattern else text

    def clean_body(self, text: str) -> str:
        """Give the body of an answer without the secrets; what was JSON stays JSON, and its numbers what they are."""
        if self._pattern is None or not self._pattern.search(text):
            return text
        try:
            value = parse_json(text)
        except ValueError:
            return self.clean(text)
        return json.dumps(self._clean_value(value), ensure_ascii=False)

    def _clean_value(self, value: object) -> object:
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list):
            return [self._clean_value(item) for item in cast(list[object], value)]
        if isinstance(value, dict):
            fields = cast(dict[str, object], value)
            return {self.clean(name): self._clean_value(item) for name, item in fields.items()}
        return value


def _spellings_of(secret: str) -> Iterator[str]:
    """Write patterns for a secret: its characters in any escape, and its base64 in any surroundings."""
    # Before the first character escapes of an escape may stay, so that a body of backslashes takes no longer.
    characters = [_character(letter, most_escapes=8 if place else 1) for place, letter in enumerate(secret)]
    # Of a secret that was cut short, a beginning is enough; whatever follows of it goes too.
    yield "".join(characters[:_SHORTEST_CUT]) + "".join(f"(?:{spelt})?" for spelt in characters[_SHORTEST_CUT:])
    content = secret.encode()
    for num_before in range(3):
        encoded = base64.b64encode(bytes(num_before) + content).decode()
        first, last = (8 * num_before + 5) // 6, 8 * (num_before + len(content)) // 6
        yield "".join(_BASE64.get(letter, letter) for letter in encoded[first:last])


_BASE64 = {"+": r"(?:[+-]|%2b)", "/": r"(?:\\{0,8}/|_|%2f)"}


def _character(letter: str, *, most_escapes: int) -> str:
    code = ord(letter)
    in_json = rf"\\{{0,{most_escapes}}}{re.escape(letter)}|\\{{1,{most_escapes}}}(?:u00|x){code:02x}"
    return rf"(?:{in_json}|%(?:25){{0,4}}{code:02x}|&\#(?:0{{0,5}}{code}|x0{{0,5}}{code:x});)"
