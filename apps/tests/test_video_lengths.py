"""From one frame to 256, in every shape: videos of every family go through encode, sft, grpo and evaluate with vLLM."""

import hashlib
import importlib.util
import json
from pathlib import Path

import av
import numpy as np
import pytest

from longrl.cli import main
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records

SHAPES = {"landscape": (54, 96), "portrait": (96, 54), "tiny": (6, 10)}
FRAME_COUNTS = (1, 2, 7, 256)
UNFIT = {"thin": (8, 4, 900)}
RECIPE = """\
output = "{output}"
learning_rate = 1e-4
{settings}

[model]
folder = "{model}"
store = "{store}"

[data]
dataset = "{dataset}"
split = "train_rl"
num_frames = 256
"""
SFT = "rows_per_step = 8"
GRPO = "steps = 1\nprompts_per_step = 12\ngroup_size = 2\nmax_response_tokens = 8\nmax_logprob_gap = 1e-4"


def write_film(path: Path, num_frames: int, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            shade = np.random.default_rng((num_frames, index)).integers(0, 256, 3, np.uint8)
            picture = np.broadcast_to(shade, (height, width, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One question about a video of every length and shape, and about one that Qwen's models can't accept."""
    folder = tmp_path_factory.mktemp("dataset")
    films = {f"{shape}-{count}": (count, *size) for shape, size in SHAPES.items() for count in FRAME_COUNTS} | UNFIT
    records: list[QuestionRecord] = []
    for name, (count, height, width) in films.items():
        path = folder / "videos" / f"{name}.mp4"
        write_film(path, count, height, width)
        records.append(
            QuestionRecord(
                question_id=name,
                media=(
                    RecordMedium(
                        path=f"videos/{name}.mp4",
                        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
                        duration_seconds=count / 4,
                    ),
                ),
                split=Split.TRAIN_RL,
                skill=Skill.TEMPORAL,
                question="Which colour is seen first?",
                options=("red", "green", "blue", "white"),
                answer="ABCD"[len(records) % 4],
                evidence=(),
                reasoning="It is seen at the start.",
                source="test",
                license="Apache-2.0",
            )
        )
    write_records(folder / "records.parquet", records)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "vila"])
def test_every_length_and_shape_goes_through(
    family: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    dropped = {} if family == "vila" else {"unfit_medium": 1}
    counts = {"input": 13, "kept": 13 - len(dropped), "dropped": dropped}
    assert main(["tiny-model", "--family", family, "--output", str(model)]) == 0
    encode = ["encode", str(dataset / "videos"), "--model", str(model), "--store", str(store), "--num-frames", "256"]
    assert main(encode) == len(dropped)
    said = capsys.readouterr()
    assert f"{counts['kept']} videos, {counts['kept']} newly encoded" in said.out
    assert ("thin.mp4: frames of 4×900: one side is more than 200 times the other" in said.err) == bool(dropped)

    for stage, settings, start in (("sft", SFT, model), ("grpo", GRPO, tmp_path / "sft" / "model")):
        recipe = tmp_path / f"{stage}.toml"
        values = {"output": tmp_path / stage, "model": start, "store": store, "dataset": dataset}
        recipe.write_text(RECIPE.format(settings=settings, **values))
        assert main([stage, str(recipe)]) == 0, capsys.readouterr().err
        assert json.loads((tmp_path / stage / "result.json").read_text())["questions"] == counts
    [step] = (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(step)["prompts_refused"] == {}

    evaluate = ["evaluate", "--model.folder", str(tmp_path / "grpo" / "model"), "--model.store", str(store)]
    evaluate += ["--data.dataset", str(dataset), "--data.split", "train_rl", "--data.num-frames", "256"]
    assert main([*evaluate, "--max-response-tokens", "8", "--output", str(tmp_path / "accuracy.json")]) == 0
    found = json.loads((tmp_path / "accuracy.json").read_text())
    assert (found["questions"], found["count"], found["prompts_refused"]) == (counts, counts["kept"], {})
    assert f"{counts['kept']} videos, 0 newly encoded" in (main(encode), capsys.readouterr().out)[1]
