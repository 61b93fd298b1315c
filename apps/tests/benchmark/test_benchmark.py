"""`longrl benchmark` and `longrl plan`, with very small settings and everything real."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from longrl.benchmark.measurement import PeakMemory, StageClock
from longrl.benchmark.modes import MODES, rotated
from longrl.cli import main
from mrsp_engine.planner.costs import STAGES

SMALL_STEP = ["--frames", "4", "--response-tokens", "8", "--group-size", "4", "--repeats", "1", "--device", "cpu"]


@pytest.mark.slow
def test_steps_are_measured_in_every_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "step.json"
    assert main(["benchmark", "step", "--output", str(output), *SMALL_STEP]) == 0
    results = json.loads(output.read_text())
    assert [row["mode"] for row in results["rows"]] == ["plain", "cached", "published", "shared"]
    for row in results["rows"]:
        assert tuple(row["seconds_by_stage"]) == STAGES
        assert min(row["seconds_by_stage"].values()) > 0
        assert sum(row["seconds_by_stage"].values()) == pytest.approx(row["seconds"])
        assert (row["frames"], row["response_tokens"], row["group_size"], row["ranks"]) == (4, 8, 4, 1)
        assert row["prompt_tokens"] > 4 * 32
    plain, cached = results["rows"][0], results["rows"][1]
    # 1 + 3 × 4 encodes against one.
    assert plain["seconds_by_stage"]["encode"] > 3 * cached["seconds_by_stage"]["encode"]
    assert [ratio["slower"] for ratio in results["ratios"]] == ["plain", "cached", "published"]
    assert len(results["predictions"]) == 4
    root = ElementTree.fromstring(output.with_suffix(".svg").read_text())
    assert root.tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step.json", "step.svg"]
    printed = capsys.readouterr().out
    assert "shared is" in printed
    assert "off by" in printed


@pytest.mark.slow
def test_a_model_with_linear_layers_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "steps.json"
    options = ("--frames", "4", "--modes", "cached", "shared", "--response-tokens", "4", "--repeats", "1")
    assert main(["benchmark", "step", "--family", "qwen3_5", *options, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["model"] == "tiny qwen3_5"
    assert [row["mode"] for row in found["rows"]] == ["cached", "shared"]
    assert [ratio["slower"] for ratio in found["ratios"]] == ["cached"]


@pytest.mark.slow
def test_steps_that_take_too_long_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--frames", "2", "4", "--response-tokens", "2", "--group-size", "2", "--device", "cpu"]
    arguments = ["--modes", "cached", "shared", "--repeats", "2", *sizes]
    for minutes, num_steps in (("0", 1), ("5", 2)):
        output = tmp_path / f"{minutes}.json"
        assert main(["benchmark", "step", "--output", str(output), "--most-minutes", minutes, *arguments]) == 0
        rows = json.loads(output.read_text())["rows"]
        assert [len(row["seconds_of_repeats"]) for row in rows] == [num_steps] * 4
        told = capsys.readouterr().err
        assert told.count("no step 2, which would take longer than --most-minutes 0") == (2 if num_steps == 1 else 0)


@pytest.mark.slow
def test_steps_are_measured_on_two_ranks(tmp_path: Path) -> None:
    """Three responses, so that the ranks have unequal shares."""
    output = tmp_path / "step.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["--frames", "4", "--response-tokens", "8", "--group-size", "3", "--repeats", "1", "--device", "cpu"]
    command = [*torchrun, "-m", "longrl.cli", "benchmark", "step", "--output", str(output), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(output.read_text())["rows"]
    assert [(row["mode"], row["ranks"]) for row in rows] == [(mode, 2) for mode in MODES]


@pytest.mark.slow
def test_one_rank_of_many_sends_what_the_planner_foresees(tmp_path: Path) -> None:
    sizes: dict[str, object] = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 6, "intermediate_size": 256, "vocab_size": 300, "max_position_embeddings": 1024}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    output = tmp_path / "rank.json"
    model = ["--model", str(tmp_path), "--layers", "2", "--frames", "0", "--dtype", "float32", "--device", "cpu"]
    row_of = ["--ranks", "4", "--group-size", "2", "--response-tokens", "16", "--repeats", "1"]
    for head_ranks in ("1", "2", "4"):
        arguments = ["--output", str(output), *model, *row_of, "--head-ranks", head_ranks]
        assert main(["benchmark", "rank", *arguments]) == 0
        (row,) = json.loads(output.read_text())["rows"]
        assert row["split"]["head_ranks"] * row["split"]["token_ranks"] == 4
        assert row["own_tokens"] == (64 + 2 * 16) // 4
        assert row["sent_bytes"] == pytest.approx(row["planned_sent_bytes"], rel=0.05)
        layers = row["seconds_forward"] + row["seconds_backward"]
        assert row["seconds_whole_model"] == pytest.approx(3 * layers + row["seconds_scoring"])
    assert not torch.distributed.is_initialized()


def test_attention_is_compared_with_a_dense_call(tmp_path: Path) -> None:
    output = tmp_path / "attention.json"
    sizes = ["--prompt-tokens", "128", "--group-size", "2", "--response-tokens", "16", "--repeats", "1"]
    assert main(["benchmark", "attention", "--output", str(output), *sizes, "--device", "cpu"]) == 0
    results = json.loads(output.read_text())
    assert [row["kind"] for row in results["rows"]] == ["packed", "dense"]
    assert all(row["forward_share"] == row["forward_rate"] / results["matrix_rate"] > 0 for row in results["rows"])


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    wanted = ["--model", "Qwen2.5-VL-7B", "--frames", "3600", "--frame-pixels", "100352", "--gpus", "8"]
    wanted += ["--gpu-memory", "80GB"]
    assert main(["plan", *wanted, "--group-size", "8", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for words in ("ranks per row", "checkpointing", "gpu_memory_utilization", "optimizer", "embedding store"):
        assert words in printed
    assert json.loads(output.read_text())["sizes"]["prompt_tokens"] == 1800 * 120 + 2 + 64


@pytest.mark.parametrize(
    ("shown", "num_frames"),
    [
        (["--frames", "128"], 128),
        (["--num-frames", "128"], 128),
        (["--fps", "0.5", "--video-seconds", "256"], 128),
        (["--fps", "10", "--max-frames", "128", "--video-seconds", "256"], 128),
        (["--fps", "0.01", "--min-frames", "128", "--video-seconds", "256"], 128),
        (["--preset", "longvila_r1", "--frame-pixels", "10000000"], 256),
    ],
)
def test_a_plan_counts_what_a_run_shows(
    shown: list[str], num_frames: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan.json"
    assert main(["plan", "--model", "Qwen2.5-VL-7B", *shown, "--gpu", "H200", "--output", str(output)]) == 0
    sizes = json.loads(output.read_text())["sizes"]
    assert (sizes["num_frames"], sizes["prompt_tokens"]) == (num_frames, num_frames // 2 * 1196 + 2 + 64)
    assert "a run drops such questions" not in capsys.readouterr().out  # the tokens of a frame share their positions
    assert sizes["prompt_positions"] < 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--model", "Qwen2.5-VL-72B", "--frames", "64", "--gpus", "2"], "doesn't fit on 2 devices"),
        (["plan", "--model", "Qwen2.5-VL-7B", "--frames", "8", "--gpu-memory", "much"], "--gpu-memory 'much'"),
        (["plan", "--model", "nothing", "--frames", "8"], "neither a folder"),
        (
            ["plan", "--model", "Qwen2.5-VL-7B", "--frames", "8", "--lora-rank", "0"],
            "--lora-rank 0: expected 1 or more",
        ),
        (["plan", "--model", "Qwen2.5-VL-7B"], "--frames is missing"),
        (["plan", "--model", "Qwen2.5-VL-7B", "--fps", "1"], "set --video-seconds"),
        (["plan", "--model", "Qwen2.5-VL-7B", "--frames", "8", "--fps", "1"], "omit one"),
        (["plan", "--model", "Qwen2.5-VL-7B", "--num-frames", "8", "--fps", "1"], "set one of them"),
        (["benchmark", "step", "--repeats", "0"], "--repeats 0: expected 1 or more"),
        (["benchmark", "step", "--most-minutes", "-1"], "--most-minutes -1.0: expected 0 or more"),
        (["benchmark", "step", "--output", "x.txt"], "expected a name that ends in .json"),
        (["benchmark", "step", "--family", "qwen9"], "family 'qwen9': expected one of "),
        (["benchmark", "step", "--family", "qwen3_5", "--model", "m"], "--family qwen3_5: chooses the tiny model"),
        (["benchmark", "step", "--family", "qwen2", "--frames", "2"], "accepts no videos"),
        (["benchmark", "step", "--device", "abacus"], "--device abacus"),
        (["benchmark", "rank", "--ranks", "2", "--rank", "2", "--device", "cpu"], "--rank 2 of --ranks 2"),
        (["benchmark", "attention", "--prompt-tokens", "0"], "expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_stage_within_a_stage_stops_its_clock() -> None:
    clock = StageClock(("outer", "inner"), torch.device("cpu"))
    with clock("outer"):
        with clock("inner"):
            torch.randn(500, 500) @ torch.randn(500, 500)
        before = dict(clock.seconds)
    assert before["inner"] > before["outer"]
    assert clock.seconds["inner"] == before["inner"]


def test_peak_memory_sees_what_was_freed_again() -> None:
    memory = PeakMemory(torch.device("cpu"))
    torch.ones(16 << 20).sum()
    assert memory.read() == pytest.approx(64 << 20, rel=0.25)


def test_modes_take_turns() -> None:
    order = [rotated(("plain", "cached", "shared"), repeat) for repeat in range(4)]
    assert order[:2] == [("plain", "cached", "shared"), ("cached", "shared", "plain")]
    assert order[3] == order[0]
