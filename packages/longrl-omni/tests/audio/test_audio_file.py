"""Audio files: exact ranges, whatever the container, and one clear line for what can't be read."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from longrl_omni.audio.audio_file import SAMPLE_RATE as RATE
from longrl_omni.audio.audio_file import AudioFile
from longrl_omni.audio.tiny_tasks import make_tone, write_sound
from longvideo_reason_data.errors import DataError, UsageError

FORMATS = [("wav", "pcm_s16le"), ("flac", "flac"), ("mp4", "aac"), ("mkv", "flac"), ("mp3", "mp3"), ("ogg", "libopus")]


def loudest_pitch(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


@pytest.mark.parametrize(("suffix", "codec"), FORMATS)
def test_a_range_holds_what_the_whole_holds_there(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    write_sound(path, [make_tone(440, 1.0, rate=48_000), make_tone(440, 1.0, rate=48_000)], rate=48_000, codec=codec)
    audio = AudioFile.open(path)
    assert (audio.sample_rate, audio.source_rate, audio.num_channels) == (RATE, 48_000, 2)
    assert audio.num_samples == pytest.approx(RATE, abs=0.12 * RATE)  # lossy encoders pad
    whole = audio.read()
    assert whole.shape == (audio.num_samples,)
    assert loudest_pitch(whole, RATE) == pytest.approx(440, abs=3)
    assert np.abs(whole).max() < 0.6
    ranges = [(0, 1), (1, 700), (5000, 5001), (5001, 9000), (audio.num_samples - 3, audio.num_samples)]
    for (start, end), part in zip(ranges, audio.read_ranges(ranges), strict=True):
        np.testing.assert_array_equal(part, whole[start:end])
        np.testing.assert_array_equal(audio.read(start, end), whole[start:end])


def test_stored_samples_come_back_untouched(tmp_path: Path) -> None:
    sound = make_tone(300, 0.5)
    write_sound(tmp_path / "a.wav", [sound])
    audio = AudioFile.open(tmp_path / "a.wav")
    assert audio.num_samples == len(sound)
    assert audio.duration_seconds == 0.5
    np.testing.assert_allclose(audio.read(), sound, atol=5e-5)


def test_channels_are_mixed(tmp_path: Path) -> None:
    left, right = make_tone(200, 0.5), make_tone(3000, 0.5)
    write_sound(tmp_path / "a.wav", [left, right])
    np.testing.assert_allclose(AudioFile.open(tmp_path / "a.wav").read(), (left + right) / 2, atol=1e-3)


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", [make_tone(200, 0.1)])
    write_sound(tmp_path / "b.wav", [make_tone(201, 0.1)])
    (tmp_path / "c.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    digests = [AudioFile.open(tmp_path / f"{name}.wav").content_digest for name in "abc"]
    assert digests[0] == digests[2] != digests[1]


def test_impossible_ranges_are_refused(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", [make_tone(200, 0.1)])
    audio = AudioFile.open(tmp_path / "a.wav")
    for ranges in ([(0, audio.num_samples + 1)], [(5, 5)], [(-1, 3)], [(10, 20), (15, 30)]):
        with pytest.raises(DataError, match="requested"):
            list(audio.read_ranges(ranges))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        AudioFile.open(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_is_no_audio_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        AudioFile.open(tmp_path / "absent.wav")
    with pytest.raises(UsageError, match="a folder"):
        AudioFile.open(tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "empty" in refusal(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("This is no sound. " * 500)
    assert "not an audio file" in refusal(tmp_path / "text.wav")
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert "video only" in refusal(tmp_path / "mute.mp4")


@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp4", "aac"), ("mkv", "flac")])
def test_a_cut_file_is_not_a_short_one(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    write_sound(path, [make_tone(440, 2.0)], codec=codec)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    message = refusal(path)
    assert "truncated" in message or "damaged" in message


def test_damage_in_the_middle_is_found_and_placed(tmp_path: Path) -> None:
    path = tmp_path / "tone.flac"
    write_sound(path, [make_tone(440, 2.0)], codec="flac")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    assert "damaged" in refusal(path) or "truncated" in refusal(path)


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x7FFFF024, 0xFFFFFFFF])
def test_a_placeholder_is_no_length(tmp_path: Path, length: int) -> None:
    sound = make_tone(300, 0.5)
    write_sound(tmp_path / "a.wav", [sound])
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = length.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_allclose(AudioFile.open(tmp_path / "a.wav").read(), sound, atol=5e-5)


@pytest.mark.parametrize("wrong_by", [-36, -8, 8, 36])
def test_the_size_of_the_whole_may_be_wrong_by_a_header(tmp_path: Path, wrong_by: int) -> None:
    sound = make_tone(300, 0.5)
    write_sound(tmp_path / "a.wav", [sound])
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = (int.from_bytes(content[4:8], "little") + wrong_by).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_allclose(AudioFile.open(tmp_path / "a.wav").read(), sound, atol=5e-5)


def write_film(
    path: Path, codec: str, *, shown_from: int = 0, heard_from: int = 0, lost: range = range(0), rate: int = 48_000
) -> None:
    """Write two seconds of video, and a tone from the given milliseconds on; some audio packets are lost."""
    sound = np.round(make_tone(440, 2.0, rate=rate) * 32767).astype(np.int16).reshape(1, -1)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25, options={"bf": "0"})
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        voice = container.add_stream(codec, rate=rate, layout="mono")
        packets = []
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = shown_from + 40 * number, Fraction(1, 1000)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        heard = []
        for start in range(0, sound.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 960]), "s16", "mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = heard_from * rate // 1000 + start
            heard += voice.encode(frame)
        heard += voice.encode(None)
        packets += [packet for number, packet in enumerate(heard) if number not in lost]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


CLOCKS = [("mkv", "flac"), ("mkv", "libopus"), ("mp4", "aac"), ("mov", "aac"), ("mov", "pcm_s16le"), ("mkv", "mp3")]


def loud_part(path: Path) -> tuple[float, float, AudioFile]:
    audio = AudioFile.open(path)
    loud = np.flatnonzero(np.abs(audio.read()) > 0.02)
    return float(loud[0] / RATE), float(loud[-1] / RATE), audio


@pytest.mark.parametrize(("suffix", "codec"), CLOCKS)
def test_sound_is_on_the_films_clock(tmp_path: Path, suffix: str, codec: str) -> None:
    write_film(tmp_path / f"a.{suffix}", codec)
    start, end, audio = loud_part(tmp_path / f"a.{suffix}")
    assert (start, end) == pytest.approx((0, 2), abs=0.05)
    write_film(tmp_path / f"b.{suffix}", codec, heard_from=700)
    late_start, late_end, late = loud_part(tmp_path / f"b.{suffix}")
    assert (late_start - start, late_end - end) == pytest.approx((0.7, 0.7), abs=0.04)
    assert late.fillings[0] == (0, pytest.approx(0.7 * RATE, abs=0.04 * RATE))
    write_film(tmp_path / f"c.{suffix}", codec, shown_from=600)
    early_start, early_end, early = loud_part(tmp_path / f"c.{suffix}")
    assert (early_start, early_end - end) == pytest.approx((0, -0.6), abs=0.05)
    assert early.fillings[0] == (pytest.approx(-0.6 * RATE, abs=0.04 * RATE), 0)
    assert len({audio.num_samples, late.num_samples, early.num_samples}) == 3
    np.testing.assert_array_equal(late.read(9000, 20_000), late.read()[9000:20_000])


@pytest.mark.parametrize(
    ("suffix", "codec", "first", "packet"), [("mkv", "libopus", 40, 960), ("mp4", "aac", 40, 1024)]
)
def test_a_gap_is_silence(tmp_path: Path, suffix: str, codec: str, first: int, packet: int) -> None:
    write_film(tmp_path / f"whole.{suffix}", codec)
    write_film(tmp_path / f"gap.{suffix}", codec, lost=range(first, first + 25))
    whole, gap = (AudioFile.open(tmp_path / f"{name}.{suffix}") for name in ("whole", "gap"))
    assert not [filling for filling in whole.fillings if filling[1] > 0]
    assert gap.num_samples == pytest.approx(whole.num_samples, abs=RATE // 500)
    middle = round((first + 12) * packet / 48_000 * RATE)
    assert not gap.read(middle - 1000, middle + 1000).any()
    assert loudest_pitch(gap.read(gap.num_samples - 9000, gap.num_samples - 2000), RATE) == pytest.approx(440, abs=5)
    filled = sum(end - start for start, end in gap.fillings if end > 0)
    assert filled == pytest.approx(25 * packet / 3, abs=RATE // 500)


def test_a_recording_without_pictures_begins_with_its_first_sound(tmp_path: Path) -> None:
    for suffix, codec in FORMATS:
        write_sound(tmp_path / f"a.{suffix}", [make_tone(440, 1.0)], codec=codec)
        assert AudioFile.open(tmp_path / f"a.{suffix}").fillings == ()


def test_a_cut_mp3_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mp3"
    write_sound(path, [make_tone(440, 2.0, rate=44_100)], rate=44_100, codec="mp3")
    AudioFile.open(path)
    assert not caplog.records
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    AudioFile.open(path)
    assert len(caplog.records) == 1
    assert "its header says 2.0" in caplog.records[0].message
