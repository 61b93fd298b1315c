"""Every reader of text from outside, as a function of bytes: it returns, or raises what it says it raises.

Used by property tests and by `fuzz_readers.py`, which runs for as long as it is told to. Parquet, videos and images are
not here: libraries read their bytes, and a fuzzer of this project would only find the flaws of those.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.exchange.import_layouts import read_question
from longvideo_reason_data.exchange.published_media import UnusableError
from longvideo_reason_data.filtering.evaluation_sets import read_evaluation_set
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.chat_protocol import read_completion
from longvideo_reason_data.language_model.failures import read_rejection
from longvideo_reason_data.media.subtitles.timed_text import NotTimedTextError, read_timed_json, read_timed_text
from longvideo_reason_data.records.answers import parse_response
from longvideo_reason_data.records.folder import DROPPED_NAME, MANIFEST_NAME, SEGMENTS_NAME, read_decoder, read_manifest
from longvideo_reason_data.records.notes import FILTERS_NAME, DroppedNote, SegmentNote, read_filtered, read_notes
from longvideo_reason_data.records.options import read_options, split_options
from longvideo_reason_data.tables import read_rows
from longvideo_reason_data.text_encodings import decode_text

Reader = Callable[[bytes], object]
OPTIONS = ("the red lamp", "the blue door", "a dog", "nothing")

_folder = Path(tempfile.mkdtemp(prefix="foreign-readers-"))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _in_file(name: str, read: Callable[[Path], object]) -> Reader:
    def use(content: bytes) -> None:
        path = _folder / str(os.getpid()) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        try:
            with suppress(DataError):
                read(path)
        finally:
            path.unlink()

    return use


def _in_text(read: Callable[[str], object], *expected: type[Exception]) -> Reader:
    def use(content: bytes) -> None:
        with suppress(*expected):
            read(_text(content))

    return use


def _row(content: bytes) -> None:
    with suppress(UnfitJsonError):
        row = parse_json(content)
        if isinstance(row, dict):
            read_options(row)
            for layout in ("longvideo-reason", "video-r1"):
                with suppress(UnusableError):
                    read_question(row, layout, None)


def _decode(content: bytes) -> None:
    with suppress(UnicodeError):
        decode_text(content)


def _completion(content: bytes) -> None:
    with suppress(ValueError):
        read_completion(_text(content))


def _journal(path: Path) -> None:
    with ResponseCache(path) if path.name == "responses.jsonl" else Ledger(path=path):
        pass


READERS: dict[str, Reader] = {
    "JSON": _in_text(parse_json, UnfitJsonError),
    "encoding": _decode,
    "shown text": _in_text(visible),
    "manifest": _in_file(MANIFEST_NAME, lambda path: (read_manifest(path.parent), read_decoder(path.parent))),
    "segments": _in_file(SEGMENTS_NAME, lambda path: list(read_notes(path.parent, path.name, SegmentNote))),
    "dropped items": _in_file(DROPPED_NAME, lambda path: list(read_notes(path.parent, path.name, DroppedNote))),
    "filtered questions": _in_file(FILTERS_NAME, lambda path: list(read_filtered(path.parent))),
    **{
        f"table{suffix}": _in_file(f"table{suffix}", lambda path: list(read_rows(path))) for suffix in (".json", ".csv")
    },
    "table.jsonl": _in_file("table.jsonl", lambda path: list(read_rows(path))),
    "evaluation set": _in_file("set.json", read_evaluation_set),
    "published question": _row,
    "options": _in_text(split_options),
    "answer": _in_text(lambda text: parse_response(text, OPTIONS)),
    "subtitles": _in_text(read_timed_text, NotTimedTextError),
    "subtitles in JSON": _in_text(read_timed_json, NotTimedTextError),
    "answer of a server": _completion,
    "rejection of a server": _in_text(lambda text: read_rejection(400, text)),
    "journal of answers": _in_file("responses.jsonl", _journal),
    "journal of calls": _in_file("calls.jsonl", _journal),
}
