"""The length of audio according to its file's header, which may be wrong or a placeholder; nothing is decoded here."""

from pathlib import Path

from av.audio.stream import AudioStream
from av.container import InputContainer

from longvideo_reason_data.media.streams import format_names

# Their headers give the length of the signal, so a truncated file can be distinguished from a short one.
_NAMES_WITH_LENGTH = frozenset({"wav", "w64", "flac", "aiff", "au", "caf"})

# From this value on, a length in a WAV header is a placeholder: programs that write to a pipe use a very large number.
_LEAST_PLACEHOLDER = 0x7FFFF000


def missing_wave_bytes(path: Path) -> int:
    """Number of bytes that a WAV file lacks according to its header; 0 for other files and unknown lengths.

    The header's total size is ignored: in many files it is wrong by a few bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return 0
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                return 0 if length >= _LEAST_PLACEHOLDER else max(0, file.tell() + length - size)
            file.seek(length + length % 2, 1)
    return 0


def mp3_header_seconds(path: Path, stream: AudioStream) -> float:
    """Length according to the header that encoders put before an MP3 stream; 0 for other files and without one."""
    if stream.codec_context.name not in ("mp3", "mp3float") or stream.duration is None or stream.time_base is None:
        return 0.0
    with path.open("rb") as file:
        head = file.read(1 << 20)
    return float(stream.duration * stream.time_base) if b"Xing" in head or b"Info" in head else 0.0


def declared_seconds(container: InputContainer, stream: AudioStream) -> float:
    """Length according to the header; 0 where headers don't state it, or only estimate it."""
    if stream.duration is None or stream.time_base is None or not _NAMES_WITH_LENGTH & format_names(container):
        return 0.0
    return float(stream.duration * stream.time_base)
