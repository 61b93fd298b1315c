"""Text and JSON from outside: what is refused, and what a terminal gets to see."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import error_line, visible
from longrl_files.regular_files import open_regular, read_bounded

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_json_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(b"\xef\xbb\xbf" + text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NaN",
        "-Infinity",
        "1e999",
        "[-1e400]",
        '{"a": ["9", ' + "9" * 400 + ".0]}",
        '"\\ud800"',
        '"\ud800"',
        b'"\xff"',
        "[" * 10**5,
        '{"a":' * 300 + "1" + "}" * 300,
        "[1,]",
        "{'a': 1}",
        "9" * 5000,
    ],
)
def test_json_that_nobody_can_work_with(text: str | bytes) -> None:
    with pytest.raises(UnfitJsonError) as caught:
        parse_json(text)
    assert str(caught.value).isprintable()


@given(st.text(st.characters(categories=("Cs", "L", "P", "Cc")), max_size=30))
def test_half_letters_are_replaced_and_nothing_else(text: str) -> None:
    for written in (json.dumps(text), json.dumps(json.dumps(text))):
        expected = json.loads(written).encode("utf-8", "replace").decode()
        assert parse_json(written, replaces_half_letters=True) == expected


@given(st.text(st.characters(), max_size=700), st.integers(20, 500))
def test_what_is_shown_prints_and_is_short(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    if text.isprintable() and len(text) <= limit:
        assert shown == text


def test_control_characters_are_spelled_out() -> None:
    assert visible("a\n\x1b[2Jb\u202ec\u2028\ud800") == r"a\n\x1b[2Jb\u202ec\u2028\ud800"


def test_both_ends_of_a_long_line_are_kept() -> None:
    line = error_line(ValueError(f"question 'x{'y' * 10**6}' is odd; set --other"))
    assert line.startswith("error: question 'xyyy")
    assert line.endswith("yy' is odd; set --other")
    assert len(line) < 400


def test_files_that_a_user_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert read_bounded(tmp_path / "link", error=LookupError) == b"content"
    with pytest.raises(LookupError, match="more than 6 bytes"):
        read_bounded(tmp_path / "file", error=LookupError, max_bytes=6)
    for place, reason in (("fifo", "a FIFO"), ("nothing", "No such file"), (".", "a folder"), ("a\0b", "null")):
        with pytest.raises(LookupError, match=reason):
            open_regular(tmp_path / place, error=LookupError)
    with pytest.raises(LookupError, match="a device"):
        open_regular(Path("/dev/zero"), error=LookupError)
