"""Audio files: exact ranges, whatever the container, and one clear line for what can't be heard."""

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
        with pytest.raises(DataError, match="asked for"):
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
