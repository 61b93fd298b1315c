"""Every shipped recipe makes real steps, as a user types it, with a small checkpoint of its family.

The options that are given here only make things smaller: frames, tokens, steps, ranks, responses. vLLM is replaced by
the plain sampling loop, since it starts slowly; every family's agreement with it is `test_published_models.py`'s.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from recipe_models import RECIPES, command_in, model_in

from longrl.cli import main
from longrl.stages import read_tables
from longvideo_reason_data.question_types import QuestionType, Skill
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Split, write_records

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "longrl-omni" / "tests" / "generation"))
from tiny_pipelines import write_tiny_flux, write_tiny_pipeline, write_tiny_wan

pytestmark = pytest.mark.long
NUM_STEPS, NUM_FRAMES, RATE = 2, 8, 16_000
SMALL_WORLD = {
    "seconds": 16.0,
    "scene_seconds": 2.0,
    "size_pixels": 64,
    "train_sft_videos": 2,
    "train_rl_videos": 2,
    "held_out_videos": 2,
    "questions_per_video": 2,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "vocabulary_size": 512,
    "epochs": 1,
    "rows_per_step": 1,
    "questions_per_row": 2,
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_response_tokens": 8,
    "num_frames": 4,
}
SMALL_PICTURES = {
    "train_captions": 8,
    "held_out_captions": 3,
    "steps": 3,
    "pictures_per_step": 4,
    "prompts_per_step": 2,
    "group_size": 2,
    "noise_levels_per_sample": 1,
    "samples_per_pass": 4,
}


def write_film(path: Path, shade: int) -> None:
    """Two seconds, eight frames a second, with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        picture: Any = container.add_stream("libx264", rate=8)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        voice: Any = container.add_stream("aac", rate=RATE, layout="mono")
        for index in range(16):
            pixels = np.full((64, 64, 3), (shade + 9 * index) % 256, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
        tone = np.sin(np.arange(2 * RATE) / RATE * 2 * np.pi * 440).astype(np.float32)
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(voice.encode(frame))
        container.mux(voice.encode(None))


def write_dataset(folder: Path, *, is_mathematics: bool) -> None:
    """Two questions of every split, each about a film, or from a text."""
    records: list[QuestionRecord] = []
    for number, split in enumerate(split for split in Split for _ in range(NUM_STEPS)):
        path = f"text/{number}.txt" if is_mathematics else f"videos/{number}.mp4"
        if is_mathematics:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"Exercise {number}")
        else:
            write_film(folder / path, 40 * number)
        digest = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        records.append(
            QuestionRecord(
                question_id=str(number),
                media=(RecordMedium(path=path, digest=digest, duration_seconds=2.0),),
                split=split,
                skill=Skill.TEMPORAL,
                question="What is 2 + 3?" if is_mathematics else "What is seen first?",
                options=() if is_mathematics else ("red", "green", "blue", "white"),
                answer="5" if is_mathematics else "A",
                answer_type=QuestionType.MATHEMATICS if is_mathematics else None,
                evidence=(),
                reasoning="It is so.",
                source="test",
                license="Apache-2.0",
            )
        )
    write_records(folder / "records.parquet", records)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_dataset(folder, is_mathematics=False)
    return folder


@pytest.fixture(scope="module")
def exercises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exercises")
    write_dataset(folder, is_mathematics=True)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `longrl quickstart --world pictures` leaves behind, with small numbers in its recipe."""
    folder = tmp_path_factory.mktemp("pictures")
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "pictures")
    (folder / "small.toml").write_text(make_small(recipe, SMALL_PICTURES))
    assert run("quickstart", "--world", "pictures", "--recipe", folder / "small.toml", "--output", folder / "run") == 0
    return folder / "run"


def make_small(recipe: Path, values: Mapping[str, float]) -> str:
    """The text of a recipe of the quickstart, which takes no options for its settings."""
    text = recipe.read_text()
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name} = [^\s\[]+", f"{name} = {value}", text)
        assert count, name
    return text


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_makes_steps(recipe: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command, output = command_in(recipe), tmp_path / "run"
    if recipe.stem.startswith("quickstart"):
        text = re.sub(r"num_frames = \[.*\]", "num_frames = [2, 4]", make_small(recipe, SMALL_WORLD))
        text, count = re.subn(r"(?<=\[grpo\.sampler\]\n).*", 'engine = "transformers"', text)
        assert count == 1
        (tmp_path / "small.toml").write_text(text)
        world = recipe.stem.removeprefix("quickstart_") if "_" in recipe.stem else "timeline"
        assert run(command, "--world", world, "--recipe", tmp_path / "small.toml", "--output", output) == 0
        assert (output / "report.html").is_file()
    elif command in ("sft", "grpo", "evaluate"):
        start(recipe, command, output, request, tmp_path)
    elif command == "generate-grpo":
        is_wan = recipe.stem.startswith("wan")
        write_generator = write_tiny_wan if is_wan else write_tiny_pipeline
        write_generator = write_tiny_flux if recipe.stem.startswith("flux") else write_generator
        write_generator(tmp_path / "pipeline")
        (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
        places = ("--model.folder", tmp_path / "pipeline", "--prompts", tmp_path / "prompts.txt", "--output", output)
        held_out = ("--held-out-prompts", tmp_path / "prompts.txt", "--evaluation-samples", 1)
        small = ("--steps", NUM_STEPS, "--prompts-per-step", 1, "--group-size", 2, "--sampling.samples-per-pass", 2)
        if is_wan:
            small += ("--sampling.height", 32, "--sampling.width", 32, "--sampling.frames", 5)
        elif "height" in read_tables(recipe)["sampling"]:
            small += ("--sampling.height", 16, "--sampling.width", 16)
        assert run(command, recipe, *places, *held_out, *map(str, small)) == 0
        assert len((output / "metrics.jsonl").read_text().splitlines()) == NUM_STEPS
        assert len(list((output / ("clips" if is_wan else "pictures") / "after").iterdir())) == 2
        assert (output / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    else:
        drawn = request.getfixturevalue("pictures")
        if command == "quickstart":
            assert (drawn / "report.json").is_file()
            return
        prompts = drawn / "captions" / "held_out_prompts.txt"
        places = ("--model.folder", drawn / "rl" / "model", "--prompts", prompts, "--output", output)
        assert run(command, recipe, *places, "--samples-per-prompt", "1") == 0
        assert list(output.rglob("*.png"))


def start(recipe: Path, command: str, output: Path, request: pytest.FixtureRequest, folder: Path) -> None:
    """A recipe about a dataset: two steps, or the answers to two questions."""
    tables = read_tables(recipe)
    model_in(recipe).write_small(folder / "model")
    dataset = request.getfixturevalue("exercises" if "text" in recipe.stem else "films")
    places = {"model.folder": folder / "model", "model.store": folder / "store", "data.dataset": dataset}
    small: dict[str, object] = {"output": output, **places}
    if "num_frames" in tables["data"]:
        small["data.num-frames"] = NUM_FRAMES
    if "parallel" in tables:
        small["parallel.sequence-ranks"] = 1
    if command != "sft":
        small |= {"sampler.engine": "transformers", "max-response-tokens": 8}
    small |= {
        "sft": {"epochs": 1, "rows-per-step": 1, "questions-per-row": 1},
        "grpo": {"steps": NUM_STEPS, "prompts-per-step": 2, "group-size": 2},
        "evaluate": {},
    }[command]
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert run(command, recipe, *options) == 0
    if command == "evaluate":
        assert json.loads(output.read_text())["count"] == NUM_STEPS
        return
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if step["step"]] == [1, 2]
    assert json.loads((output / "result.json").read_text())["questions"]["dropped"] == {}
    assert (output / "model").is_dir()
