"""The whole pipeline with tiny settings: once from beginning to end, once killed in between."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from longvideo_reason_data.inspection.check import check_dataset
from mrsp_engine.embeddings.store import EmbeddingStore

TINY_RECIPE = Path(__file__).parent / "tiny_quickstart.toml"
CONTRACT = {
    "seed": int,
    "seconds": dict,
    "questions": dict,
    "videos": int,
    "encodes": int,
    "accuracy": dict,
    "accuracy_on_rl_questions": dict,
    "gain_of_grpo": dict,
    "accuracy_by_skill": dict,
    "accuracy_by_frames": dict,
    "unparsed_rate": float,
    "reward": list,
    "logprob_gap": dict,
    "parameters": int,
    "peak_memory_bytes": int,
    "versions": dict,
}


def stage_messages(messages):
    return [line for line in messages.splitlines() if line and not line.startswith(" ") and ": " in line]


@pytest.mark.slow
def test_report_json_keeps_its_contract(finished):
    summary = finished.summary()
    for key, kind in CONTRACT.items():
        assert isinstance(summary[key], kind), key
    assert set(summary["accuracy"]) == {"chance", "constant", "blind", "untrained", "sft", "grpo"}
    assert set(summary["questions"]) == {"train_sft", "train_rl", "held_out"}
    assert set(summary["logprob_gap"]) == {"mean_abs", "max_abs"}
    assert set(summary["accuracy_by_frames"]) == {"2", "4"}
    assert summary["accuracy_by_frames"]["4"] == summary["accuracy"]["grpo"]
    for found in summary["accuracy_on_rl_questions"].values():
        assert set(found) == {"accuracy", "standard_error", "questions"}
    assert len(summary["reward"]) == 2
    assert summary["videos"] == 7
    assert summary["questions"]["held_out"] == 4
    stages = {name: seconds for name, seconds in summary["seconds"].items() if name != "total"}
    assert list(stages)[:3] == ["world", "model", "encode"]
    assert len(stages) == 10
    assert sum(stages.values()) == pytest.approx(summary["seconds"]["total"], abs=0.01)
    assert 100 * 1024**2 < summary["peak_memory_bytes"] < 6 * 1024**3
    assert summary["logprob_gap"]["mean_abs"] <= 1e-5


@pytest.mark.slow
def test_every_video_is_encoded_once_for_every_plan_of_frames(finished):
    # 3 + 2 videos at 4 frames, 2 videos at 2 and at 4 frames.
    assert finished.summary()["encodes"] == 9
    store = EmbeddingStore(finished.folder / "embeddings")
    assert store.stats().entries == store.counters.encodes == 9


@pytest.mark.slow
def test_the_models_before_and_after_grpo_are_asked_the_same_of_its_questions(finished):
    answers = [
        json.loads((finished.folder / f"evaluations/{name}/train-rl.json").read_text()) for name in ("sft", "grpo")
    ]
    asked = [[item["question_id"] for item in answer["items"]] for answer in answers]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 3
    assert all(question_id.startswith("train_rl") for question_id in asked[0])
    for name, answer in zip(("sft", "grpo"), answers, strict=True):
        found = finished.summary()["accuracy_on_rl_questions"][name]
        assert found["accuracy"] == answer["accuracy"]
        assert found["standard_error"] == answer["accuracy_standard_error"]


@pytest.mark.slow
def test_what_is_left_is_whole(finished):
    assert [line for line in check_dataset(finished.folder / "dataset") if "unbalanced" not in line] == []
    assert (finished.folder / "grpo" / "model" / "model.safetensors").is_file()
    assert json.loads((finished.folder / "config.json").read_text())["sft"]["epochs"] == 2
    assert "vllm.entrypoints.openai.api_server" in finished.messages
    assert finished.messages.index(f"longrl watch {finished.folder}\n") < finished.messages.index("world: starts")


@pytest.mark.slow
@pytest.mark.parametrize(("most_bytes", "stage"), [(8192, "world"), (65536, "model")])
def test_a_full_disk_is_one_clear_line_and_nothing_half_written_counts(longrl, tmp_path, most_bytes, stage):
    folder = tmp_path / "run"
    done = subprocess.run(
        longrl.line("quickstart", "--recipe", TINY_RECIPE, "--output", folder),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last
    assert (folder / "stages" / f"{stage}.started.json").exists()
    assert not (folder / "stages" / f"{stage}.json").exists()
    assert not (folder / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_killed_in_several_stages_it_repeats_nothing_and_ends_the_same(longrl, finished, tmp_path):
    folder = tmp_path / "run"
    arguments = ("quickstart", "--recipe", TINY_RECIPE, "--output", folder)
    done_before: set[str] = set()
    for awaited in ("stages/encode.started.json", "sft/checkpoints/step-000001", "grpo/metrics.jsonl"):
        process = longrl.start(*arguments)
        limit = time.monotonic() + 300
        while not (folder / awaited).exists() and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        said = stage_messages(process.communicate()[1])
        assert {line.partition(":")[0] for line in said if line.endswith(": reused")} == done_before
        stages = [path for path in (folder / "stages").glob("*.json") if not path.name.endswith(".started.json")]
        done_before = {path.stem for path in stages}
    assert {"world", "model", "encode", "sft"} <= done_before
    last = longrl(*arguments)
    assert last.returncode == 0, last.stderr
    said = stage_messages(last.stderr)
    assert {line.partition(":")[0] for line in said if line.endswith(": reused")} == done_before
    assert not any("redo" in line for line in said)
    for name in ("sft/model/model.safetensors", "grpo/model/model.safetensors", "dataset/records.parquet"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    summary = json.loads((folder / "report.json").read_text())
    for key in ("accuracy", "reward", "encodes", "logprob_gap"):
        assert summary[key] == finished.summary()[key]
    again = longrl(*arguments)
    assert all(line.endswith(": reused") for line in stage_messages(again.stderr)), again.stderr


@pytest.mark.slow
def test_only_what_changed_is_redone(longrl, finished, tmp_path):
    changed = tmp_path / "changed.toml"
    changed.write_text(TINY_RECIPE.read_text().replace("steps = 2", "steps = 3"))
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", str(finished.folder), str(folder)], check=True)
    # Which stage notes the videos' digests depends on how soon after rendering it looks at them.
    shutil.rmtree(folder / "embeddings" / "digests")
    done = longrl("quickstart", "--recipe", changed, "--output", folder)
    assert done.returncode == 0, done.stderr
    said = stage_messages(done.stderr)
    assert [line for line in said if "redo" in line] == [
        "grpo: redo: steps was 2 and is now 3",
        "evaluate-grpo: redo: grpo changed",
        "evaluate-blind: redo: grpo changed",
        "report: redo: evaluate-grpo and evaluate-blind changed",
    ]
    assert len(json.loads((folder / "report.json").read_text())["reward"]) == 3
