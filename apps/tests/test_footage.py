"""One's own videos: recipes for them, and the whole way from a folder to a report, killed in between."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from longrl.cli import main
from longrl.corpus import corpus_of_stories
from longrl.footage.splits import settle_splits
from longrl.tiny_model import TinyModelSettings, build_tiny_model
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.records.splits import SplitFractions, assign_split

SERVER = Path(__file__).parents[2] / "packages" / "longvideo-reason-data" / "tests" / "answering_server.py"
SIZES = TinyModelSettings(
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    intermediate_size=128,
    vocabulary_size=512,
    vision_hidden_size=32,
    vision_num_heads=2,
    vision_depth=1,
    frame_pixels=3136,
)
CONFIGS = {"sft": SftConfig, "grpo": GrpoConfig, "evaluate": EvaluateConfig}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    build_tiny_model(folder, corpus_of_stories(), SIZES, seed=0)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for number in range(6):
        with av.open(str(folder / f"film {number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for index in range(16):
                picture = np.full((64, 64, 3), 40 * number, dtype=np.uint8)
                picture[3 * index : 3 * index + 8, 8:24] = 250
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder


@pytest.fixture
def server(tmp_path):
    log = tmp_path / "answered.log"
    process = subprocess.Popen([sys.executable, str(SERVER), str(log)], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip(), log
    finally:
        process.kill()
        process.communicate()


def test_recipes_are_filled_in_load_strictly_and_replace_nothing(model, films, tmp_path, capsys):
    output = tmp_path / "own"
    line = ["init", str(films), "--model", str(model), "--output", str(output), "--gpu", "H100"]
    assert main(line) == 0
    said = capsys.readouterr().out
    configs = {name: load_recipe(output / f"{name}.toml", kind) for name, kind in CONFIGS.items()}
    assert configs["sft"].model.folder == model
    assert configs["grpo"].model.folder == configs["sft"].output / "model"
    assert configs["evaluate"].model.folder == configs["grpo"].output / "model"
    assert {config.data.dataset for config in configs.values()} == {output / "dataset"}
    # Four seconds show eight frames; what an H100 holds is no limit here.
    assert {config.data.num_frames for config in configs.values()} == {8}
    assert configs["grpo"].dtype == "bfloat16"
    for name in CONFIGS:
        head = (output / f"{name}.toml").read_text().splitlines()
        assert f"# Run it:      longrl {name} {output / name}.toml" in head
        assert f"longrl {name} {output / name}.toml" in said
    # Of six videos the build that is shown leaves no split without any, as the usual shares would.
    (command,) = (text.split() for text in said.splitlines() if "longvideo-data build --videos" in text)
    given = dict(itertools.pairwise(command))
    usual = SplitFractions().model_dump()
    fractions = SplitFractions(
        **{name: float(given.get(f"--splits.{name.replace('_', '-')}", share)) for name, share in usual.items()}
    )
    videos = [digest_file(path) for path in films.iterdir()]
    found = {assign_split(digest, fractions, seed=int(given.get("--seed", 0))) for digest in videos}
    assert found == set(Split)
    (output / "sft.toml").unlink()
    before = (output / "grpo.toml").read_bytes()
    assert main(line) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "grpo.toml exists" in error
    assert not (output / "sft.toml").exists()
    assert (output / "grpo.toml").read_bytes() == before


def test_splits_of_few_videos_are_never_empty_and_stay_when_videos_come(tmp_path):
    digests = [f"{number:064x}" for number in range(7)]
    settings = settle_splits(BuildSettings(), digests, tmp_path)
    splits = {digest: assign_split(digest, settings.splits, seed=settings.seed) for digest in digests}
    assert set(splits.values()) == set(Split)
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings.model_dump(mode="json")}))
    again = settle_splits(BuildSettings(), [*digests, "f" * 64, "e" * 64], tmp_path)
    assert {digest: assign_split(digest, again.splits, seed=again.seed) for digest in digests} == splits
    own = BuildSettings(seed=5)
    assert settle_splits(own, digests, tmp_path) == own


def test_what_is_missing_is_one_line_before_anything_is_asked(model, films, tmp_path, capsys):
    common = ["--base-url", "http://127.0.0.1:9/v1", "--served-model", "model", "--output", str(tmp_path / "out")]
    assert main(["start", str(films), "--model", str(tmp_path / "none"), *common]) == 2
    assert "no config.json there" in capsys.readouterr().err
    two = [str(path) for path in sorted(films.iterdir())[:2]]
    assert main(["start", *two, "--model", str(model), *common]) == 2
    assert "2 videos: expected 3 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def stages_in(messages):
    return [line for line in messages.splitlines() if line and not line.startswith(" ") and ": " in line]


@pytest.mark.long
def test_from_a_folder_of_videos_to_a_report_killed_in_between(longrl, model, films, server, tmp_path):
    base_url, log = server
    output = tmp_path / "own"
    assert longrl("init", films, "--model", model, "--output", output, "--gpu", "cpu").returncode == 0
    shorter = {"max_response_tokens = 128": "max_response_tokens = 8", 'engine = "vllm"': 'engine = "transformers"'}
    for path in output.glob("*.toml"):
        text = path.read_text()
        for old, new in shorter.items():
            text = text.replace(old, new)
        path.write_text(
            re.sub(r"^(steps|epochs) = .*", r"\1 = 2", text, flags=re.MULTILINE).replace(
                "every_steps = 20", "every_steps = 1"
            )
        )
    # The server answers from one frame, so that condition is left out: it can't decide.
    line = ("start", films, "--model", model, "--output", output, "--base-url", base_url, "--served-model", "model")
    line += ("--filters.thresholds.max-single-frame-rate", "1", "--filters.num-samples", "2")
    for awaited in ("dataset/calls.jsonl", "sft/checkpoints/step-000001"):
        process = longrl.start(*line)
        limit = time.monotonic() + 240
        while not (output / awaited).exists() and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[1]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = longrl(*line)
    assert done.returncode == 0, done.stderr
    assert {"build: reused", "encode: reused"} <= set(stages_in(done.stderr))
    asked = log.read_text().split()
    assert len(set(asked)) == len(asked)  # nothing was paid twice, but what was under way at the kill
    summary = json.loads((output / "report.json").read_text())
    assert set(summary["accuracy"]) == {"chance", "constant", "blind", "untrained", "sft", "grpo"}
    assert set(summary["accuracy_on_rl_questions"]) == {"sft", "grpo"}
    assert summary["videos"] == 6
    page = (output / "report.html").read_text()
    assert "your own videos" in page
    assert "rendered" not in page

    recipe = output / "grpo.toml"
    recipe.write_text(recipe.read_text().replace("\nsteps = 2\n", "\nsteps = 3\n"))
    changed = longrl(*line)
    assert [said for said in stages_in(changed.stderr) if "redo" in said] == [
        "grpo: redo: steps was 2 and is now 3",
        "evaluate-grpo: redo: grpo changed",
        "evaluate-blind: redo: grpo changed",
        "report: redo: evaluate-grpo and evaluate-blind changed",
    ]
    assert log.read_text().split() == asked
    other = longrl(*line, "--captions.num-frames", "2")
    assert other.returncode == 2
    assert "captions.num_frames was 4 and is now 2" in other.stderr
    assert "--replace" in other.stderr
