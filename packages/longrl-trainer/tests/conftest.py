"""A tiny world for the loops: videos of one colour each, questions about them, and a tiny real Qwen2.5-VL."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longrl_trainer.sft import train_sft
from longvideo_reason_data.records.answers import format_prompt, format_response
from longvideo_reason_data.records.medium import MediumKind, RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.rollout.base import RolloutEngine
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (235, 235, 235)}
NUM_FRAMES, SIZE = 12, 56


def write_film(
    path: Path, colour: str, *, seed: int = 0, num_frames: int = NUM_FRAMES, height: int = SIZE, width: int = SIZE
) -> None:
    """One colour that fills the frame, with a moving grey square, so that no two videos are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            picture = np.full((height, width, 3), COLOURS[colour], dtype=np.uint8)
            left = (7 * seed + 3 * index) % max(1, height - 8)
            picture[left : left + 8, 4:12] = 128
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make_record(folder: Path, path: str, colour: str, split: Split, number: int) -> QuestionRecord:
    """A question about a video's colour whose correct letter depends on its number."""
    names = list(COLOURS)
    options = names[number % 4 :] + names[: number % 4]
    return QuestionRecord(
        question_id=f"{split}-{number}",
        media=(
            RecordMedium(
                path=path,
                digest=hashlib.sha256((folder / path).read_bytes()).hexdigest(),
                duration_seconds=NUM_FRAMES / 4,
            ),
        ),
        split=split,
        skill=list(Skill)[number % 4],
        question="Which colour fills the picture?",
        options=tuple(options),
        answer="ABCD"[options.index(colour)],
        evidence=(),
        reasoning=f"It is {colour}.",
        source="test",
        license="Apache-2.0",
    )


@dataclass(frozen=True)
class World:
    """The paths of everything; `sft`, `grpo` and `evaluation` return configurations for it."""

    folder: Path
    dataset: Path
    model: Path
    records: tuple[QuestionRecord, ...]

    def sft(self, output: Path, **changes: Any) -> SftConfig:
        values = self._values(output, "train_sft") | {
            "epochs": 2,
            "rows_per_step": 2,
            "questions_per_row": 2,
            "learning_rate": 3e-3,
            "checkpoint_every_steps": 2,
        }
        return parse_config(_with(values, changes), SftConfig, source="test")

    def grpo(self, output: Path, **changes: Any) -> GrpoConfig:
        values = self._values(output, "train_rl") | {
            "steps": 2,
            "prompts_per_step": 2,
            "group_size": 4,
            "learning_rate": 1e-3,
            "max_response_tokens": 12,
            "checkpoint_every_steps": 2,
            "sampler": {"engine": "transformers"},
        }
        return parse_config(_with(values, changes), GrpoConfig, source="test")

    def evaluation(self, output: Path, **changes: Any) -> EvaluateConfig:
        values = self._values(output, "held_out") | {
            "max_response_tokens": 16,
            "sampler": {"engine": "transformers"},
        }
        return parse_config(_with(values, changes), EvaluateConfig, source="test")

    @contextmanager
    def vllm(self) -> Generator[RolloutEngine]:
        """One sampler for several runs: starting it takes longer than any of them."""
        from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine

        engine = VllmRolloutEngine(
            self.model, EmbeddingStore(self.folder / "embeddings"), max_model_len=256, memory_bytes=32 * 1024**2
        )
        try:
            yield engine
        finally:
            engine.close()

    def _values(self, output: Path, split: str) -> dict[str, Any]:
        return {
            "model": {"folder": str(self.model), "store": str(self.folder / "embeddings")},
            "data": {"dataset": str(self.dataset), "split": split, "num_frames": 4},
            "output": str(output),
        }


def _with(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Apply changes to values; `data__num_frames=8` changes a setting of a section."""
    values = json.loads(json.dumps(values))
    for name, value in changes.items():
        *sections, last = name.split("__")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = str(value) if isinstance(value, Path) else value
    return values


def build_world(folder: Path, *, splits: Sequence[Split] = tuple(Split)) -> World:
    """Four videos per split, two questions per video."""
    dataset = folder / "dataset"
    records: list[QuestionRecord] = []
    for split in splits:
        for number, colour in enumerate(COLOURS):
            path = f"videos/{split}-{colour}.mp4"
            write_film(dataset / path, colour, seed=len(records))
            records += [make_record(dataset, path, colour, split, 2 * number + offset) for offset in range(2)]
    write_records(dataset / "records.parquet", records)
    corpus = [
        format_prompt(record.question, record.options) + "\n" + format_response(record.reasoning, record.answer)
        for record in records
    ]
    create_tiny_qwen2_5_vl(
        folder / "model",
        corpus=corpus,
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        vocabulary_size=512,
        vision_hidden_size=32,
        vision_num_heads=2,
        vision_depth=1,
        frame_pixels=SIZE * SIZE,
    )
    return World(folder=folder, dataset=dataset, model=folder / "model", records=tuple(records))


def build_film_world(folder: Path, films: Mapping[str, Mapping[str, int]]) -> World:
    """Videos of the given shapes by name, with one question each; the test adds the model."""
    dataset = folder / "dataset"
    records: list[QuestionRecord] = []
    for number, (name, shape) in enumerate(films.items()):
        colour = list(COLOURS)[number % 4]
        write_film(dataset / f"videos/{name}.mp4", colour, seed=number, **shape)
        record = make_record(dataset, f"videos/{name}.mp4", colour, Split.TRAIN_RL, number)
        records.append(record.model_copy(update={"question_id": name}))
    write_records(dataset / "records.parquet", records)
    return World(folder=folder, dataset=dataset, model=folder / "model", records=tuple(records))


@pytest.fixture(scope="session")
def film_world() -> Callable[..., World]:
    """Makes a world of videos of chosen shapes."""
    return build_film_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests that don't damage it; its embedding store is shared."""
    return build_world(tmp_path_factory.mktemp("world"))


def write_picture(path: Path, colour: str, *, seed: int = 0) -> None:
    """A frame of one colour with a grey square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIZE, SIZE, 3), COLOURS[colour], dtype=np.uint8)
    pixels[4 + seed : 12 + seed, 20:28] = 128
    Image.fromarray(pixels).save(path)


def build_album(world: World, folder: Path, *, splits: Sequence[Split] = tuple(Split)) -> World:
    """Questions about several media each, for the model of a world.

    In every split: two videos, a video and an image, an image between two videos, three images, and the same video
    twice; two questions about each.
    """
    dataset = folder / "dataset"
    records: list[QuestionRecord] = []
    for number, split in enumerate(splits):
        media: dict[str, RecordMedium] = {}
        for colour in COLOURS:
            for kind, suffix in ((MediumKind.VIDEO, "mp4"), (MediumKind.IMAGE, "png")):
                path = f"{kind}s/{split}-{colour}.{suffix}"
                write = write_film if kind is MediumKind.VIDEO else write_picture
                write(dataset / path, colour, seed=number)
                digest = hashlib.sha256((dataset / path).read_bytes()).hexdigest()
                seconds = NUM_FRAMES / 4 if kind is MediumKind.VIDEO else None
                media[f"{kind} {colour}"] = RecordMedium(kind=kind, path=path, digest=digest, duration_seconds=seconds)
        for place, names in enumerate(ALBUM):
            for offset in range(2):
                asked = make_record(dataset, media["video red"].path, "red", split, 2 * place + offset)
                records.append(asked.model_copy(update={"media": tuple(media[name] for name in names)}))
    write_records(dataset / "records.parquet", records)
    return World(folder=folder, dataset=dataset, model=world.model, records=tuple(records))


ALBUM = (
    ("video red", "video green"),
    ("video red", "image blue"),
    ("video green", "image blue", "video white"),
    ("image red", "image green", "image blue"),
    ("video white", "video white"),
)


@pytest.fixture(scope="session")
def album(started: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Questions about several media, for a model after some CoT-SFT."""
    return build_album(started, tmp_path_factory.mktemp("album"))


@pytest.fixture
def new_album(world: World, tmp_path: Path) -> Callable[..., World]:
    """Makes such a dataset of the test's own."""
    return lambda **options: build_album(world, tmp_path / "album", **options)


@pytest.fixture(scope="session")
def started(world: World) -> World:
    """The same world with a model after some CoT-SFT: its format is mostly right, its answers are often wrong."""
    output = world.folder / "started"
    train_sft(world.sft(output, epochs=50, rows_per_step=4, learning_rate=1e-2, checkpoint_every_steps=1000))
    return dataclasses.replace(world, model=output / "model")


@pytest.fixture
def new_world(tmp_path: Path) -> Callable[..., World]:
    """Makes a world of the test's own."""
    return lambda **options: build_world(tmp_path / "world", **options)
