"""Whatever bytes come from outside, a reader returns or raises what it says it raises."""

import json

import pytest
from foreign_readers import OPTIONS, READERS
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = [
    "question",
    "options",
    "answer",
    "items",
    "segments",
    "settings",
    "decoder",
    "stages",
    "filter",
    "choices",
    "usage",
    "message",
    "content",
    "finish_reason",
    "error",
    "video",
    "path",
    "start",
    "end",
    "line",
    "timestamp",
    "text",
    "A",
    "event",
    "started",
    "call",
    "key",
    "reason",
    "detail",
    "stage",
    "item",
    "question_id",
    "videos",
    "images",
    "data",
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from((*WORDS, *OPTIONS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner),
    max_leaves=12,
)
pieces = st.sampled_from(
    [
        *("A.", "(B)", "<answer>", "</answer>", "<think>", "the answer is ", "Antwort: ", "。", *OPTIONS),
        *("\n", "\r\r\n", " --> ", "00:01:02,345", "WEBVTT", "[Script Info]"),
        *(",", '"', "{", "}", "[", "]", "\\u", "\x1b", "\0", "1e999", "NaN"),
    ]
)
foreign = st.one_of(
    st.binary(max_size=300),
    values.map(lambda value: json.dumps(value).encode()),
    st.lists(values, max_size=4).map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()),
    st.lists(pieces | st.text(max_size=8), max_size=30).map(
        lambda found: "".join(found).encode("utf-8", "surrogatepass")
    ),
)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(content=foreign)
def test_a_reader_returns_or_says_what_is_wrong(name: str, content: bytes) -> None:
    READERS[name](content)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"a" * 1_000_000, b"\n" * 100_000, b"(" * 50_000]
)
def test_a_reader_takes_no_time_and_no_stack_for_repetition(name: str, content: bytes) -> None:
    READERS[name](content)
