"""What is said in a video reaches the right segment, from a file beside it or a track inside it."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.subtitles import Cue, digest_cues, read_subtitles, speech_between
from longvideo_reason_data.media.video_file import VideoFile

MakeVideo = Callable[..., Path]
SRT = """1
00:00:00,500 --> 00:00:01,000
Good <i>morning</i>,
everybody.

2
00:00:01,200 --> 00:00:01,900
{\\an8}- Who's there?
"""
VTT = """WEBVTT

00:00.500 --> 00:01.000
<v Ann>Salt &amp; pepper</v>
"""


def texts(video: Path) -> list[str]:
    return [cue.text for cue in read_subtitles(VideoFile.open(video))]


def test_a_file_beside_the_video(make_video: MakeVideo) -> None:
    video = make_video("talk.mp4")
    assert texts(video) == []
    video.with_name("talkative.srt").write_text(SRT)
    video.with_name("talk.notes.srt").write_text(SRT)
    assert texts(video) == []
    video.with_name("talk.en.vtt").write_text(VTT)
    assert texts(video) == ["Salt & pepper"]
    video.with_name("talk.srt").write_text(SRT)
    cues = read_subtitles(VideoFile.open(video))
    assert [cue.text for cue in cues] == ["Good morning, everybody.", "- Who's there?"]
    assert [(cue.start_seconds, cue.end_seconds) for cue in cues] == [(0.5, 1.0), (1.2, 1.9)]


@pytest.mark.parametrize(("content", "why"), [(b"no subtitles", "Invalid data"), ("café".encode("latin-1"), "Invalid")])
def test_a_file_that_is_none_is_told(make_video: MakeVideo, content: bytes, why: str) -> None:
    video = make_video("talk.mp4")
    head = b"1\n00:00:00,500 --> 00:00:01,000\n" if b"\xe9" in content else b""
    video.with_name("talk.srt").write_bytes(head + content + b"\n")
    with pytest.raises(DataError, match=rf"talk\.srt: its subtitles can't be read \({why}.*UTF-8"):
        texts(video)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "subrip"), ("mp4", "mov_text"), ("mkv", "ass")])
def test_a_track_inside_the_video_counts_from_its_first_frame(
    make_video: MakeVideo, tmp_path: Path, suffix: str, codec: str
) -> None:
    late = [1000 + 40 * number for number in range(50)]
    plain = make_video(f"plain.{suffix}", num_frames=50, times=late)
    subtitles = tmp_path / "words.srt"
    subtitles.write_text(SRT)
    path = tmp_path / f"with.{suffix}"
    mux(plain, subtitles, path, codec)
    video = VideoFile.open(path)
    start = float(int(video.index.times[0]) * video.index.time_base)
    assert start == pytest.approx(1.0)
    cues = read_subtitles(video)
    assert [cue.text for cue in cues] == ["Good morning, everybody.", "- Who's there?"]
    assert [cue.start_seconds + start for cue in cues] == pytest.approx([0.5, 1.2], abs=0.02)


def mux(video: Path, subtitles: Path, target: Path, codec: str) -> None:
    """Copy the pictures of one file and the words of another into a third."""
    with av.open(str(video)) as pictures, av.open(str(subtitles)) as words, av.open(str(target), "w") as out:
        shown = out.add_stream_from_template(pictures.streams.video[0])
        said = out.add_stream(codec)
        said.codec_context.subtitle_header = b"[Script Info]\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
        said.time_base = Fraction(1, 1000)
        for packet in pictures.demux(video=0):
            if packet.size:
                packet.stream = shown
                out.mux(packet)
        for packet in words.demux(subtitles=0):
            if packet.size:
                for rewritten in encoded(words.streams.subtitles[0], said, packet):
                    out.mux(rewritten)


def encoded(source: Any, target: Any, packet: av.Packet) -> list[av.Packet]:
    decoded = source.decode2(packet)
    made = target.codec_context.encode_subtitle(decoded)
    made.pts = made.dts = packet.pts
    made.duration, made.time_base, made.stream = packet.duration, packet.time_base, target
    return [made]


def test_every_cue_is_said_in_one_segment_and_repetitions_once() -> None:
    cues = [
        Cue(start_seconds=8.0, end_seconds=11.0, text="one"),
        Cue(start_seconds=9.5, end_seconds=11.5, text="two"),
        Cue(start_seconds=12.0, end_seconds=13.0, text="two"),
        Cue(start_seconds=14.0, end_seconds=15.0, text="three"),
    ]
    assert speech_between(cues, 0, 10) == "one"
    assert speech_between(cues, 10, 20) == "two three"
    assert speech_between(cues, 20, 30) == ""
    assert digest_cues(cues) != digest_cues(cues[1:])
