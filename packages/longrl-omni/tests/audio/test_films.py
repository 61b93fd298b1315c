"""A click and a flash of the same moment have the same time, whatever the container, the codec and their offsets."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from longrl_omni.audio.audio_file import AudioFile
from longrl_omni.audio.medium import AudioClip, Film, open_film_or_recording
from longrl_omni.audio.tiny_tasks import make_tone, write_sound
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.questions.media import opener_for
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.medium import MediumKind
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.parallel import PlannedMedium
from mrsp_engine.families import load_policy
from mrsp_engine.tiny.families import build_tiny

RATE = 48_000
MOMENT_MS = 1_200
KINDS = [
    ("mp4", "libx264", "aac"),
    ("mov", "libx264", "aac"),
    ("mkv", "libx264", "aac"),
    ("mp4", "libx264", "libopus"),
    ("webm", "libvpx-vp9", "libopus"),
    ("mp4", "libx264", "flac"),
    ("mkv", "libx264", "libmp3lame"),
    ("mov", "libx264", "libmp3lame"),
]


def write_click_and_flash(path: Path, shown_by: str, heard_by: str, *, shown_from: int, heard_from: int) -> None:
    """Write three seconds of film, seen and heard from the given milliseconds on, with B-frames and encoder delays."""
    sound = np.zeros(2 * RATE, np.float32)
    click = (MOMENT_MS - heard_from) * RATE // 1000
    time = np.arange(960) / RATE
    sound[click : click + 960] = 0.9 * np.sin(2 * np.pi * 3000 * time) * np.exp(-time / 0.004)
    samples = np.round(sound * 32767).astype(np.int16).reshape(1, -1)
    with av.open(str(path), "w") as container:
        picture = container.add_stream(shown_by, rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        voice = container.add_stream(heard_by, rate=RATE, layout="mono")
        packets = []
        for at in range(shown_from, shown_from + 2_000, 40):
            light = 255 if at >= MOMENT_MS else 0
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), light, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        cutter = av.AudioResampler(voice.codec_context.format, "mono", RATE, voice.codec_context.frame_size or 960)
        for start in range(0, samples.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, start : start + 960]), "s16", "mono")
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = heard_from * RATE // 1000 + start
            for part in cutter.resample(frame):
                packets += voice.encode(part)
        for part in cutter.resample(None):
            packets += voice.encode(part)
        packets += voice.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "shown_by", "heard_by"), KINDS)
def test_a_click_and_a_flash_of_one_moment(suffix: str, shown_by: str, heard_by: str, tmp_path: Path) -> None:
    for number, (shown_from, heard_from) in enumerate(((0, 0), (0, 200), (400, 0), (120, 320))):
        path = tmp_path / f"{number}.{suffix}"
        write_click_and_flash(path, shown_by, heard_by, shown_from=shown_from, heard_from=heard_from)
        video, audio = VideoFile.open(path), AudioFile.open(path)
        light = video.read(range(video.frame_count)).mean((1, 2, 3))
        flash = video.timestamps[int(np.argmax(light > 127))] - video.timestamps[0]
        loudness = np.abs(audio.read())
        click = np.flatnonzero(loudness > 0.25 * loudness.max())[0] / audio.sample_rate
        assert flash == pytest.approx((MOMENT_MS - shown_from) / 1000, abs=0.001)
        assert click == pytest.approx(flash, abs=0.010), (shown_from, heard_from)


def test_high_rates_leave_nothing_of_what_cannot_be_heard(tmp_path: Path) -> None:
    """Of 192,000 samples a second: a tone at 30 kHz would come back at 2 kHz if samples were only dropped."""
    low, high = make_tone(440, 1.0, rate=192_000), make_tone(30_000, 1.0, rate=192_000)
    write_sound(tmp_path / "a.wav", [(low + high) / 2], rate=192_000)
    audio = AudioFile.open(tmp_path / "a.wav")
    assert (audio.source_rate, audio.num_samples) == (192_000, 16_000)
    spectrum = np.abs(np.fft.rfft(audio.read() * np.hanning(16_000)))
    assert int(spectrum.argmax()) == 440
    assert spectrum[1_500:2_500].max() < 1e-3 * spectrum[440]


def test_eight_channels_are_mixed(tmp_path: Path) -> None:
    """One of eight speaks; of the mean an eighth of it is left, and in FFmpeg's mix it would be another share."""
    voice = np.round(make_tone(440, 0.5) * 32767).astype(np.int16)
    channels = np.zeros((8, len(voice)), np.int16)
    channels[3] = voice
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.T).reshape(1, -1), "s16", "7.1")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    audio = AudioFile.open(tmp_path / "a.wav")
    assert audio.num_channels == 8
    np.testing.assert_allclose(audio.read(), voice / 32768 / 8, atol=1e-6)


def test_a_track_without_a_sound_is_refused_in_one_line(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    with pytest.raises(DataError, match=r"no samples|empty|not an audio file") as raised:
        AudioFile.open(tmp_path / "a.wav")
    assert "\n" not in str(raised.value)


def test_a_film_is_seen_and_heard_where_that_is_wanted(tmp_path: Path) -> None:
    """One flag decides; the prompt then has sound and pictures, and every wrong file is told in one line."""
    build_tiny("qwen2_5_omni", tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "store"))
    policy.freeze_vision()
    assert opener_for(policy, MediumKind.VIDEO) is open_film_or_recording
    write_click_and_flash(tmp_path / "film.mp4", "libx264", "aac", shown_from=0, heard_from=0)
    write_sound(tmp_path / "tone.flac", [make_tone(440, 1.0)], codec="flac")
    film, recording = (open_film_or_recording(tmp_path / name, policy) for name in ("film.mp4", "tone.flac"))
    assert (type(film), type(recording)) == (Film, AudioClip)
    seen, heard = FrameSettings(num_frames=4), FrameSettings(num_frames=4, sound=True)
    (shown,) = film.encode(seen)
    assert isinstance(shown, PlannedMedium)
    shown_again, sound = film.encode(heard)
    assert isinstance(shown_again, PlannedMedium)
    assert shown_again.plan == shown.plan
    prompt = policy.build_prompt("What happens?", [shown.plan.reference, sound])
    assert prompt.length > shown.plan.reference.num_tokens + 50
    assert [medium.modality for medium in recording.encode(heard)] == ["audio"]

    content = (tmp_path / "film.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with av.open(str(tmp_path / "film.mp4")) as whole, av.open(str(tmp_path / "mute.mp4"), "w") as mute:
        copy = mute.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                mute.mux(packet)
    mute_film = open_film_or_recording(tmp_path / "mute.mp4", policy)
    assert len(mute_film.encode(seen)) == 1
    with pytest.raises(DataError, match=r"contains video only.*set data\.sound to false") as told:
        mute_film.encode(heard)
    assert "\n" not in str(told.value)
    with pytest.raises(DataError, match=r"cut\.mp4"):
        open_film_or_recording(tmp_path / "cut.mp4", policy)
    build_tiny("qwen2_5_vl", tmp_path / "deaf")
    deaf = load_policy(tmp_path / "deaf", store=EmbeddingStore(tmp_path / "store"))
    with pytest.raises(TrainerUsageError, match=r"data\.sound=true: .* qwen2_5_vl hear films"):
        opener_for(deaf, MediumKind.VIDEO)(tmp_path / "film.mp4", deaf).encode(heard)
