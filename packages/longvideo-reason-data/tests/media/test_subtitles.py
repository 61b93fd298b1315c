"""Subtitles reach the right segment, from files found in practice or from a track inside the video."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from longvideo_reason_data.media.subtitles.cues import Cue, digest_cues, speech_between
from longvideo_reason_data.media.subtitles.files import find_subtitle_files
from longvideo_reason_data.media.subtitles.reading import Subtitles, read_subtitle_file, read_subtitles
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


def read(video: Path, folder: Path | None = None) -> Subtitles:
    return read_subtitles(VideoFile.open(video), folder)


def texts(video: Path) -> list[str]:
    return [cue.text for cue in read(video).cues]


def test_a_file_beside_the_video(make_video: MakeVideo) -> None:
    video = make_video("talk.mp4")
    assert texts(video) == []
    video.with_name("talkative.srt").write_text(SRT)
    video.with_name("talk.notes.srt").write_text(SRT)
    assert texts(video) == []
    video.with_name("talk.en.vtt").write_text(VTT)
    assert texts(video) == ["Salt & pepper"]
    video.with_name("talk.srt").write_text(SRT)
    cues = read(video).cues
    assert [cue.text for cue in cues] == ["Good morning, everybody.", "- Who's there?"]
    assert [(cue.start_seconds, cue.end_seconds) for cue in cues] == [(0.5, 1.0), (1.2, 1.9)]


HELLO = [(1.0, 2.0, "Hello there."), (3.0, 4.0, "Second line.")]
PLAIN = "1\n00:00:01,000 --> 00:00:02,000\nHello there.\n\n2\n00:00:03,000 --> 00:00:04,000\nSecond line.\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", "\r\r\n"),
        PLAIN.replace("\n", "\n\n"),
        PLAIN.replace(",000", ""),
        PLAIN.replace(",", "."),
        PLAIN.replace(",000", ",0"),
        PLAIN.replace(" --> ", "-->"),
        PLAIN.replace(" --> ", "   -->\t"),
        PLAIN.replace("-->", "->"),
        PLAIN.replace("00:00:", "00:"),
        PLAIN.replace("00:00:", "0:0:"),
        PLAIN.replace("1\n", "", 1).replace("2\n00:00:03", "00:00:03"),
        PLAIN.replace("\n\n2\n", "\n2\n"),
        PLAIN.replace("1\n", " 1 \n", 1).replace("\n00:", "\n 00:").replace(",000\n", ",000 \n"),
        PLAIN.replace(",000\n", ",000  X1:40 X2:600 Y1:20 Y2:50\n"),
        "\n\n\n" + PLAIN.rstrip(),
        "\ufeff" + PLAIN,
        "WEBVTT\n\n" + PLAIN.replace(",", "."),
        "WEBVTT - a title\nKind: captions\n\nNOTE by hand\n\nSTYLE\n::cue { color: red }\n\nintro\n"
        + PLAIN.replace(",000\n", ".000 align:start position:0%\n").replace(",", ".").replace("1\n", "", 1),
    ],
)
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_what_players_read_is_read(make_video: MakeVideo, text: str, suffix: str) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name("talk" + suffix).write_bytes(text.encode())
    subtitles = read(video)
    assert [(cue.start_seconds, cue.end_seconds, cue.text) for cue in subtitles.cues] == HELLO
    assert subtitles.problem == ""


def test_numbers_and_empty_lines_are_words_where_no_number_is_due(make_video: MakeVideo) -> None:
    video = make_video("talk.mp4", num_frames=3)
    file = video.with_name("talk.srt")
    file.write_text("00:01 --> 00:02\nHow many?\n\n00:03 --> 00:04\n42\n\n00:05 --> 00:06\nReally?\n")
    assert texts(video) == ["How many?", "42", "Really?"]
    file.write_text("1\n00:01 --> 00:02\nHow\n\nmany?\n42\n\n2\n00:03 --> 00:04\n7\n")
    assert texts(video) == ["How many? 42", "7"]


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xff\xfe", b"WEBVTT\n", b"WEBVTT\n\nNOTE nothing\n"]
)
def test_an_empty_file_says_that_nobody_speaks(make_video: MakeVideo, content: bytes) -> None:
    video = make_video("talk.mp4", num_frames=3)
    for suffix in (".srt", ".vtt", ".ass"):
        if suffix == ".ass" and content.startswith(b"WEBVTT"):
            continue
        video.with_name("talk" + suffix).write_bytes(content)
        assert read(video) == Subtitles(origin=f"talk{suffix}")
        video.with_name("talk" + suffix).unlink()


WORDS = {
    "utf-8": "Grüße, 你好",
    "utf-8-sig": "Grüße, 你好",
    "utf-16": "Grüße, 你好",
    "utf-16-le": "Schöne Grüße aus München.",
    "utf-16-be": "Schöne Grüße aus München.",
    "utf-32": "Grüße",
    "latin-1": "Où êtes-vous ? C'est déjà l'été, garçon.",
    "cp1252": "It’s “fine” – señor, mañana.",
    "cp1251": "Привет, как дела? Сегодня мы идём домой.",
    "koi8-r": "Привет, как дела? Сегодня мы идём домой.",
    "gb18030": "你好，我们今天去爬山。你想一起来吗？",
    "big5": "你好，我們今天去爬山。你想一起來嗎？",
    "shift_jis": "こんにちは、今日は山に登ります。",
    "euc_jp": "こんにちは、今日は山に登ります。",
    "cp949": "안녕하세요, 오늘은 산에 갑니다.",
}


@pytest.mark.parametrize("encoding", WORDS)
def test_any_usual_encoding_is_read_and_a_guess_is_told(make_video: MakeVideo, encoding: str) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name("talk.srt").write_bytes(PLAIN.replace("Hello there.", WORDS[encoding]).encode(encoding))
    subtitles = read(video)
    assert [cue.text for cue in subtitles.cues] == [WORDS[encoding], "Second line."]
    assert subtitles.problem == ""
    marked = encoding.startswith("utf") and not encoding.endswith(("-le", "-be"))
    assert ("guessed from its content" in subtitles.origin) is not marked


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("talk.srt", b"no subtitles"),
        ("talk.srt", b"1\n--> 00:00:02\nHello\n"),
        ("talk.vtt", b"WEBVTT\n\nsoon --> later\nHello\n"),
        ("talk.srt", b"\xff\xfe\x00\xd8\x00\x00"),
        ("talk.srt", bytes(range(256)) * 4),
        ("talk.srt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"),
        ("talk.ass", b"no script"),
    ],
)
def test_a_file_that_is_none_is_told(make_video: MakeVideo, name: str, content: bytes) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name(name).write_bytes(content)
    subtitles = read(video)
    assert subtitles.cues == ()
    assert subtitles.origin == name
    assert subtitles.problem.startswith(f"{video.with_name(name)}: its subtitles can't be read (")
    assert "\n" not in subtitles.problem


def test_times_that_cant_be_read_are_counted(make_video: MakeVideo) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name("talk.srt").write_text(PLAIN + "\n3\n00:00:xx --> 00:00:06\nLost.\n\n4\n00:07 --> 00:08\nFound.\n")
    subtitles = read(video)
    assert [cue.text for cue in subtitles.cues] == ["Hello there.", "Second line.", "Found."]
    assert subtitles.problem.endswith("1 subtitles have no readable times, first in line 10")


def test_words_that_are_shown_for_no_time_are_kept(make_video: MakeVideo) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name("talk.srt").write_text(
        "1\n00:00:05,000 --> 00:00:05,000\nFlash.\n\n2\n00:00:06,000 --> 00:00:07,000\nSecond.\n\n"
        "3\n00:00:09,000 --> 00:00:08,000\nBackwards.\n"
    )
    cues = read(video).cues
    assert [(cue.start_seconds, cue.end_seconds) for cue in cues] == [(5.0, 5.0), (6.0, 7.0), (9.0, 9.0)]
    assert speech_between(cues, 0, 10) == "Flash. Second. Backwards."


ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.320 --> 00:00:02.869 align:start position:0%
{}
so<00:00:00.560><c> today</c><00:00:00.799><c> we</c><00:00:01.040><c> go</c>

00:00:02.869 --> 00:00:02.879 align:start position:0%
so today we go
{}

00:00:02.879 --> 00:00:05.110 align:start position:0%
so today we go
up<00:00:03.120><c> the</c><00:00:03.280><c> hill</c>

00:00:05.110 --> 00:00:05.120 align:start position:0%
up the hill
{}

00:00:09.000 --> 00:00:10.000 align:start position:0%
up the hill
and<00:00:09.500><c> down</c>
""".replace("{}", " ")  # lines that contain only a space
TWO_ROWS = """1
00:00:01,000 --> 00:00:02,000
so today we go

2
00:00:02,000 --> 00:00:03,000
so today we go
up the hill

3
00:00:03,000 --> 00:00:04,000
up the hill
and down
"""
PAINTED = """00:01 --> 00:02
so

00:02 --> 00:03
so today we

00:03 --> 00:04
so today we go

00:04 --> 00:05
so today we go
up the hill

00:05 --> 00:06
up the hill
and down
"""


@pytest.mark.parametrize(("name", "text"), [("talk.vtt", ROLLING), ("talk.srt", TWO_ROWS), ("talk.srt", PAINTED)])
def test_rolling_captions_say_each_line_once(make_video: MakeVideo, name: str, text: str) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name(name).write_text(text)
    assert speech_between(read(video).cues, 0, 20) == "so today we go up the hill and down"


def test_what_is_really_said_again_stays(make_video: MakeVideo) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name("talk.srt").write_text(
        "00:01 --> 00:02\nNo.\n\n00:02 --> 00:03\nNo. Never.\n\n00:03 --> 00:04\nWhy?\n\n00:06 --> 00:07\nWhy?\n"
    )
    assert texts(video) == ["No.", "No. Never.", "Why?", "Why?"]


ASS = r"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:09.00,Default,,0,0,0,,not shown
Dialogue: 0,0:00:01.00,0:00:02.00,Default,Ann,0,0,0,,{\i1}Grüße{\i0}, Herr\NMaier{nice, that}!
Dialogue: 1,0:00:01.00,0:00:02.00,Default,Ann,0,0,0,,{\i1}Grüße{\i0}, Herr\NMaier!
Dialogue: 0,0:00:02.50,0:00:03.00,Default,,0,0,0,,{\p1}m 0 0 l 100 0 100 100{\p0}
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,Soft\nbreak\hhere
"""


@pytest.mark.parametrize("name", ["talk.ass", "talk.ssa", "talk.srt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_substation_scripts(make_video: MakeVideo, name: str, encoding: str) -> None:
    video = make_video("talk.mp4", num_frames=3)
    video.with_name(name).write_bytes(ASS.replace("\n", "\r\n").encode(encoding))
    cues = read(video).cues
    assert [cue.text for cue in cues] == ["Grüße, Herr Maier!", "Soft break here"]
    assert [(cue.start_seconds, cue.end_seconds) for cue in cues] == [(1.0, 2.0), (3.0, 4.0)]


@pytest.mark.parametrize(
    "content",
    [
        [
            {"start": "00:00:01.000", "end": "00:00:02.000", "line": "Hello there."},
            {"start": "00:00:03.000", "end": "00:00:04.000", "line": "Second line."},
        ],
        [
            {"timestamp": [1.0, 2.0], "text": "Hello there."},
            {"timestamp": [3, 4], "text": " Second line."},
        ],
        {"text": "…", "segments": [{"id": n, "start": s, "end": e, "text": t} for n, (s, e, t) in enumerate(HELLO)]},
    ],
)
def test_json_in_a_folder_of_its_own(make_video: MakeVideo, tmp_path: Path, content: object) -> None:
    video = make_video("films/talk.mp4", num_frames=3)
    video.with_name("talk.json").write_text("{}")  # next to a video JSON is something else
    folder = tmp_path / "subtitles"
    folder.mkdir()
    for name in ("talk.json", "talk_en.json", "talk.en.json"):
        (folder / name).write_text(json.dumps(content))
        subtitles = read(video, folder)
        assert [(cue.start_seconds, cue.end_seconds, cue.text) for cue in subtitles.cues] == HELLO
        assert subtitles.origin == name
        (folder / name).unlink()
    assert read(video, folder) == Subtitles()


@pytest.mark.parametrize(
    "text", ["{}", "[3]", '[{"text": "x"}]', "[", "[" * 100_000, '[{"timestamp": ["x"], "text": "y"}]']
)
def test_json_that_is_no_subtitles_is_told(make_video: MakeVideo, tmp_path: Path, text: str) -> None:
    video = make_video("films/talk.mp4", num_frames=3)
    (tmp_path / "talk.json").write_text(text)
    assert "can't be read" in read(video, tmp_path).problem


def test_json_with_an_open_end_and_half_letters(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("films/talk.mp4", num_frames=3)
    (tmp_path / "talk.json").write_text(
        '[{"timestamp": [1, null], "text": "x\\ud800"}, {"timestamp": null, "text": "y"}]'
    )
    subtitles = read(video, tmp_path)
    assert [(cue.end_seconds, cue.text) for cue in subtitles.cues] == [(1.0, "x?")]
    assert subtitles.problem.endswith("1 subtitles have no readable times, first in item 1")
    assert digest_cues(subtitles.cues)


def test_names_as_people_have_them_and_which_goes_first(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("films/f.mp4", num_frames=3)
    in_order = [
        "f.SRT",
        "f.mp4.srt",
        "f.vtt",
        "f.ass",
        "f.sdh.srt",
        "f.de.srt",
        "f.en.srt",
        "f.en-orig.vtt",
        "f.pt-BR.srt",
        "f.zh-Hans-en.vtt",
        "f.en.sdh.srt",
        "f.forced.srt",
        "f.en.forced.srt",
    ]
    others = ["f.notes.srt", "film.srt", "f2.srt", "f.txt", "f.info.json", "f.json", "f-en.srt", "f.uk.srt"]
    (video.with_name("f.uk.mp4")).write_bytes(b"another film")
    for name in [*reversed(in_order), *others]:
        video.with_name(name).write_text(PLAIN)
    video.with_name("f.it.srt").mkdir()
    assert [path.name for path in find_subtitle_files(video)] == in_order
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "f.fr.forced.srt").write_text(SRT)
    assert [path.name for path in find_subtitle_files(video, tmp_path / "own")] == ["f.fr.forced.srt", *in_order]
    subtitles = read(video, tmp_path / "own")
    assert subtitles.origin.startswith("f.fr.forced.srt; ignored: f.SRT, f.mp4.srt, ")
    assert [cue.text for cue in subtitles.cues] == ["Good morning, everybody.", "- Who's there?"]
    assert len(find_subtitle_files(video, video.parent)) == len(in_order) + 1  # f.json, named by the folder


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
    cues = read_subtitles(video).cues
    assert [cue.text for cue in cues] == ["Good morning, everybody.", "- Who's there?"]
    assert [cue.start_seconds + start for cue in cues] == pytest.approx([0.5, 1.2], abs=0.02)


def mux(video: Path, subtitles: Path, target: Path, codec: str) -> None:
    """Copy the video of one file and the subtitles of another into a third."""
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


def test_words_with_times_are_lines(tmp_path: Path) -> None:
    words = [
        ("It", 0.0, 0.2),
        ("is", 0.3, 0.4),
        ("is", 0.4, 0.5),
        ("red.", 0.5, 0.9),
        ("No.", 1.2, 1.4),
        ("Wait", 2, 3),
    ]
    rows = [{"text": text, "start_time": start, "end_time": end} for text, start, end in words]
    path = tmp_path / "film.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "lost"}]))
    subtitles = read_subtitle_file(path)
    # A word that is said twice stays; a pause ends a line, after a sentence a shorter one.
    assert [(cue.start_seconds, cue.end_seconds, cue.text) for cue in subtitles.cues] == [
        (0.0, 0.9, "It is is red."),
        (1.2, 1.4, "No."),
        (2.0, 3.0, "Wait"),
    ]
    assert "1 subtitles have no readable times, first in line 7" in subtitles.problem
    path.write_text("{}\n")
    assert "no words with text, start_time and end_time in it" in read_subtitle_file(path).problem
