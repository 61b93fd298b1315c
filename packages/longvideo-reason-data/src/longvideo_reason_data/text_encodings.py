"""Text files from outside, in whatever encoding they come.

UTF-8 is what a text is when its bytes allow it. Byte order marks say the rest; without one, and with letters that
aren't UTF-8, the encoding is guessed from the letters, and the caller is told so.
"""

import codecs

from chardet import EncodingEra, detect

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(content: bytes) -> tuple[str, str | None]:
    """Turn the bytes of a text file into text.

    Returns:
        The text without a byte order mark; and the name of its encoding, when it had to be guessed from the letters.

    Raises:
        UnicodeError: When it is no text.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return content.decode(name), None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:  # as in UTF-16 without its mark
        return text, None
    guessed = detect(content, encoding_era=EncodingEra.MODERN_WEB, prefer_superset=True)["encoding"]
    if guessed is None:
        raise UnicodeError("no encoding of text fits its bytes")
    return content.decode(guessed), guessed
