"""A whole build against vLLM's own server: a tiny model with random weights sees real frames and writes JSON by schema.

The output of such a model is meaningless. What counts is that an unchanged server accepts the images and the schemas,
that every item is kept or dropped with its reason, and that nothing is requested twice.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.requests import Outcome, Request
from longvideo_reason_data.language_model.structured_output import extract_json
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

BIN = Path(sys.executable).parent
MEDIA = Path(os.environ.get("LONGRL_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
STAGES = ("videos", "segments", "questions")


@pytest.fixture(scope="module")
def base_url(
    serve: Callable[..., AbstractContextManager[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    made = subprocess.run(
        [
            BIN / "longrl",
            "tiny-model",
            "--output",
            folder / "tiny",
            "--num-layers",
            "2",
            "--initializer-range",
            "0.002",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with serve(folder / "tiny", "tiny", max_model_len=8192, log=folder / "log.txt") as address:
        yield f"{address}/v1"


def build(base_url: str, films: Path, output: Path, **options: object) -> dict[str, Any]:
    given = {"--videos": films, "--output": output, "--base-url": base_url, "--model": "tiny"}
    given |= {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    given |= {"--captions.num-frames": 2, "--captions.max-side": 112, "--captions.max-tokens": 24}
    given |= {"--captions.temperature": 1.0}  # at 0 random weights write one token forever
    given |= {"--filter": "none"}  # random weights neither answer questions nor judge answers
    given |= {"--questions.max-tokens": 64, "--questions.num-samples": 2, "--questions.open-ended-share": 0.5}
    command = [BIN / "longvideo-data", "build", *(str(word) for pair in given.items() for word in pair)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    # A random model writes hardly any question that can be kept, and a dataset without one is a failure.
    assert finished.returncode == (0 if manifest["kept"]["questions"] else 1), finished.stderr[-2000:]
    for stage in STAGES:
        counted = manifest["stages"][stage]
        assert counted["kept"] + sum(counted["dropped"].values()) == counted["input"] == manifest["input"][stage]
    return manifest


@pytest.mark.long
def test_every_item_of_a_rendered_world_has_its_end(base_url: str, tmp_path: Path) -> None:
    world = WorldSettings(seconds=12.0, num_scenes=3, scene_seconds=2.0)
    write_timeline_dataset(tmp_path / "world", world, videos={Split.TRAIN_RL: 2}, questions_per_video=1, seed=0)
    films = tmp_path / "world" / "videos"
    manifest = build(base_url, films, tmp_path / "dataset", window_seconds=4)
    assert manifest["input"] == {"videos": 2, "segments": 6, "questions": 8}
    assert manifest["kept"]["videos"] == 2
    assert manifest["kept"]["segments"] > 0, "no picture was ever described"
    assert manifest["calls"]["failed"] == {}
    again = build(base_url, films, tmp_path / "dataset", window_seconds=4)
    assert again["dataset_hash"] == manifest["dataset_hash"]
    assert again["calls"] == {**manifest["calls"], "made": 0, "cached": sum_calls(manifest)}


def sum_calls(manifest: dict[str, Any]) -> int:
    return int(manifest["calls"]["made"]) + int(manifest["calls"]["cached"])


@pytest.mark.long
def test_every_item_of_a_real_recording_has_its_end(base_url: str, tmp_path: Path) -> None:
    recording = MEDIA / "nasa_13013.mp4"
    if not recording.exists():
        pytest.skip("no real recording; set LONGRL_MEDIA")
    manifest = build(base_url, recording, tmp_path / "dataset", license="public-domain", source="NASA")
    assert manifest["kept"]["videos"] == 1
    assert manifest["kept"]["segments"] > 0
    described = [json.loads(line) for line in (tmp_path / "dataset" / "segments.jsonl").read_text().splitlines()]
    assert len(described) == manifest["kept"]["segments"]
    assert all(segment["caption"] for segment in described)


@pytest.mark.long
def test_the_server_is_held_to_a_schema(base_url: str, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["answer", "sure"],
        "properties": {"answer": {"type": "string", "enum": ["A", "B", "C", "D"]}, "sure": {"type": "boolean"}},
    }
    request = Request(model="tiny", parts=("Which one?",), max_tokens=200, temperature=1.0, schema=schema)

    async def ask() -> tuple[Outcome, str]:
        with ResponseCache(tmp_path / "responses.jsonl") as cache:
            async with LanguageModel(base_url, cache) as model:
                reply = await model.ask(request)
                return reply.outcome, reply.text

    outcome, text = asyncio.run(ask())
    assert outcome is Outcome.ANSWERED, text
    answer = extract_json(text)
    assert answer["answer"] in {"A", "B", "C", "D"}
    assert isinstance(answer["sure"], bool)
