"""The smallest tasks for an audio model and for a text model: the pitch of a tone, and small sums.

Machines without downloaded data still need questions with known answers about real files. Both datasets are complete
folders of `longvideo_reason_data` and depend only on their arguments. The module is independent of models.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from longrl_omni.audio.audio_file import SAMPLE_RATE
from longvideo_reason_data.records.answers import format_prompt, format_response
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records

PITCHES = {"deep": 150.0, "middle": 600.0, "high": 2400.0, "shrill": 6000.0}
"""Names of tones and their frequencies in hertz."""

SAMPLES_PER_FRAME = 1024


def make_tone(pitch: float, seconds: float, *, rate: int = SAMPLE_RATE, seed: int = 0) -> NDArray[np.float32]:
    """A sine with faint noise, float32 [samples]; the seed determines phase and noise."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time))
    return (0.4 * np.sin(2 * np.pi * pitch * time + seed) + noise).astype(np.float32)


def write_sound(
    path: Path, channels: Sequence[NDArray[np.float32]], *, rate: int = SAMPLE_RATE, codec: str = "pcm_s16le"
) -> None:
    """Write one or two channels of samples from -1 to 1 to a real file; its name determines the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = "stereo" if len(channels) == 2 else "mono"
    samples_CS = np.clip(np.round(np.stack(channels) * 32767), -32768, 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        for start in range(0, samples_CS.shape[1], SAMPLES_PER_FRAME):
            packed = np.ascontiguousarray(samples_CS[:, start : start + SAMPLES_PER_FRAME].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_tone_questions(folder: Path, *, clips_per_pitch: int = 2, split: Split = Split.TRAIN_RL) -> None:
    """Write recordings of one tone each and a question about each; every letter is correct equally often."""
    names = list(PITCHES)
    records: list[QuestionRecord] = []
    for number in range(len(names) * clips_per_pitch):
        name = names[number % len(names)]
        path = f"clips/{number}.flac"
        write_sound(folder / path, [make_tone(PITCHES[name], 0.4, seed=number)], codec="flac")
        options = _rotated(names, number + number // len(names))
        records.append(_make_record(folder, path, number, split, "How high is the tone?", options, name))
    write_records(folder / "records.parquet", records)


def write_sum_questions(folder: Path, *, num_questions: int = 8, split: Split = Split.TRAIN_RL) -> None:
    """Write questions for small sums; the file they refer to is the list they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = [(number, number // 2) for number in range(num_questions)]
    (folder / "sums.txt").write_text("".join(f"{first} + {second}\n" for first, second in sums))
    records: list[QuestionRecord] = []
    for number, (first, second) in enumerate(sums):
        options = _rotated([str(first + second + offset) for offset in range(4)], number)
        question = f"What is {first} + {second}?"
        records.append(_make_record(folder, "sums.txt", number, split, question, options, str(first + second)))
    write_records(folder / "records.parquet", records)


def corpus_of(records: Sequence[QuestionRecord]) -> list[str]:
    """Prompts and responses like those a model will see, to train a tokenizer on."""
    return [
        format_prompt(record.question, record.options) + "\n" + format_response(record.reasoning, record.answer)
        for record in records
    ]


def _rotated(options: list[str], places: int) -> list[str]:
    places %= len(options)
    return [*options[places:], *options[:places]]


def _make_record(
    folder: Path, path: str, number: int, split: Split, question: str, options: list[str], right: str
) -> QuestionRecord:
    return QuestionRecord(
        question_id=f"{split}-{number}",
        media=(
            RecordMedium(
                path=path, digest=hashlib.sha256((folder / path).read_bytes()).hexdigest(), duration_seconds=1.0
            ),
        ),
        split=split,
        skill=Skill.PLOT,
        question=question,
        options=tuple(options),
        answer="ABCD"[options.index(right)],
        evidence=(),
        reasoning=f"It is {right}.",
        source="made here",
        license="Apache-2.0",
    )
