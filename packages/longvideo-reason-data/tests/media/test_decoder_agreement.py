"""Extra decoders are held to the default one's pictures: counts and times may agree while frames are others."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.decoders.agreement import check_pictures
from longvideo_reason_data.media.decoders.base import DecoderName, Pixels, decoder_version
from longvideo_reason_data.media.video_file import VideoFile

MakeVideo = Callable[..., Path]
ReadCounter = Callable[[np.ndarray], int]


@pytest.fixture(params=[DecoderName.DECORD, DecoderName.TORCHCODEC])
def extra(request: pytest.FixtureRequest) -> str:
    try:
        decoder_version(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    return request.param


def transport_stream(make_video: MakeVideo) -> Path:
    return make_video("film.ts", options={"bf": "2", "preset": "fast"})


def windows_media(make_video: MakeVideo) -> Path:
    return make_video("film.wmv", codec="wmv2", options={"b": "400000"})


def second_track_is_the_default(make_video: MakeVideo) -> Path:
    """Write two tracks with the same times, of which a player shows the second."""
    files = [make_video("decoy.mkv", first_number=1000), make_video("shown.mkv")]
    path = files[0].with_name("two.mkv")
    with av.open(str(path), "w") as target:
        sources = [av.open(str(file)) for file in files]
        tracks = [target.add_stream_from_template(source.streams.video[0]) for source in sources]
        tracks[0].disposition = Disposition(0)
        tracks[1].disposition = Disposition.default
        for packets in zip(*(source.demux(video=0) for source in sources), strict=True):
            for packet, track in zip(packets, tracks, strict=True):
                if packet.size:
                    packet.stream = track
                    target.mux(packet)
    return path


def two_frames_at_one_time(make_video: MakeVideo) -> Path:
    return rewritten(make_video("plain.mkv", options={"bf": "0"}), lambda number: number - (number == 30))


def rewritten(plain: Path, time_of: Callable[[int], int]) -> Path:
    """Copy a file with other times, in frames at 25 per second."""
    path = plain.with_stem("rewritten")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = time_of(number)
                packet.time_base = Fraction(1, 25)
                packet.stream = stream
                target.mux(packet)
    return path


KINDS = [transport_stream, windows_media, second_track_is_the_default, two_frames_at_one_time]


@pytest.mark.parametrize("write", KINDS)
def test_each_frame_is_right_or_the_file_is_refused_in_a_line(
    make_video: MakeVideo, read_counter: ReadCounter, extra: str, write: Callable[[MakeVideo], Path]
) -> None:
    path = write(make_video)
    assert [read_counter(frame) for frame in VideoFile.open(path).read(range(60))] == list(range(60))
    try:
        video = VideoFile.open(path, decoder=extra)
    except DataError as error:
        refusal = str(error)
    else:
        assert [read_counter(video.read([place])[0]) for place in range(60)] == list(range(60))
        assert [read_counter(frame) for frame in video.read(range(60))] == list(range(60))
        return
    assert refusal.endswith("use the decoder pyav")
    assert "\n" not in refusal


class Misled:
    """A reader that is one place off in the places told."""

    def __init__(self, video: VideoFile, wrong: set[int], step: int = 1) -> None:
        self.video, self.wrong, self.step = video, wrong, step

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        for place in wanted:
            yield place, self.video.read([place + self.step * (place in self.wrong)])[0]


@pytest.mark.parametrize(
    ("wrong", "step"), [({0}, 1), ({59}, -1), ({24}, -1), ({24}, 1), ({28}, 1), (set(range(60)), 0)]
)
def test_one_place_off_is_seen(make_video: MakeVideo, wrong: set[int], step: int) -> None:
    video = VideoFile.open(make_video())
    if not step:
        check_pictures(video.path, video.index, Misled(video, wrong, step), "x")
        return
    with pytest.raises(
        DataError, match=r"x can't read it exactly \(it returns (frame \d+|different pixels) for frame \d+\)"
    ):
        check_pictures(video.path, video.index, Misled(video, wrong, step), "x")


def test_where_nothing_moves_counts_and_times_remain(make_video: MakeVideo, extra: str) -> None:
    still = make_video("still.mp4", turn=lambda frame: np.full_like(frame, 90))
    video = VideoFile.open(still, decoder=extra)
    assert video.frame_count == 60
    check_pictures(video.path, video.index, Misled(video, {24}), "x")
