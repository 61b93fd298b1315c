"""Fuzzes every reader of text from outside, guided by the lines of code that inputs reach.

    uv run --with atheris python packages/longvideo-reason-data/tests/fuzz_readers.py -max_total_time=600

Ends with an error and a file with the input when a reader raises what it doesn't say it raises, or hangs.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["longvideo_reason_data", "longrl_files"]):
    from foreign_readers import READERS

_READERS = list(READERS.values())


def read(content: bytes) -> None:
    """The first byte chooses the reader."""
    if content:
        _READERS[content[0] % len(_READERS)](content[1:])


if __name__ == "__main__":
    atheris.Setup([*sys.argv, "-timeout=20", "-rss_limit_mb=2048"], read)
    atheris.Fuzz()
