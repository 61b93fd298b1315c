"""What may change in an existing run: settings that don't affect the result, its length, and nothing else."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from longrl_trainer.config.effects import Effect, effect_of, find_differences, named_settings
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.digests import digest_of_uppermost_files
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.settings import list_names, own_run_folder
from longrl_trainer.sft import train_sft

FLAT = {"warmup_fraction": 0.0, "min_learning_rate_fraction": 1.0}


def weights(output: Path) -> dict[str, bytes]:
    files = sorted((output / "model").glob("*.safetensors"))
    assert files
    return {name: value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_json_lines(output / "metrics.jsonl")]


def settings_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "settings.json").read_text())


def changes_of(output: Path) -> list[dict[str, Any]]:
    return settings_of(output)["changes"]


@pytest.fixture(scope="module")
def broken_off(started, tmp_path_factory) -> Path:
    """A GRPO run whose third step of four had too large a gap, with a checkpoint after step 2. To be copied."""
    output = tmp_path_factory.mktemp("broken off") / "run"
    train_grpo(started.grpo(output, steps=2))
    with pytest.raises(TrainerError, match="raise it for low-precision arithmetic"):
        train_grpo(started.grpo(output, steps=4, max_logprob_gap=1e-12))
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000002"]
    return output


def test_settings_that_shape_nothing_may_change_and_are_logged_with_the_step(started, broken_off, tmp_path):
    shutil.copytree(broken_off, tmp_path / "run")
    changed = {"max_logprob_gap": 1e-2, "checkpoint_every_steps": 3, "journal_groups": 0, "share_prompt": False}
    changed |= {"sampler__memory_bytes": 2**26, "parallel__row_tokens": 4096}
    train_grpo(started.grpo(tmp_path / "run", steps=4, **changed))
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {line["step"] for line in read_json_lines(tmp_path / "run" / "rollouts.jsonl")} == {1, 2}
    logged = {line["setting"]: line for line in changes_of(tmp_path / "run")[2:]}
    assert {line["after_step"] for line in logged.values()} == {2}
    assert logged["sampler.memory_bytes"]["was"] == 512 * 2**20
    assert logged["sampler.memory_bytes"]["now"] == 2**26
    assert logged["max_logprob_gap"] | {"was": 0} == {
        "after_step": 2,
        "setting": "max_logprob_gap",
        "was": 0,
        "now": 1e-2,
    }
    assert set(logged) == {name.replace("__", ".") for name in changed}
    assert settings_of(tmp_path / "run")["settings"]["journal_groups"] == 0


@pytest.mark.slow
def test_a_finished_grpo_run_made_longer_is_the_run_that_was_begun_longer(started, broken_off, tmp_path):
    whole = started.grpo(tmp_path / "whole", steps=4)
    train_grpo(whole)
    shutil.copytree(broken_off, tmp_path / "longer")
    result = train_grpo(started.grpo(tmp_path / "longer", steps=4))
    assert result.num_steps == 4
    assert weights(tmp_path / "longer") == weights(whole.output)
    assert losses(tmp_path / "longer") == losses(whole.output)
    assert changes_of(whole.output) == []
    assert {"after_step": 2, "setting": "steps", "was": 2, "now": 4} in changes_of(tmp_path / "longer")


def test_fewer_steps_than_done_are_one_line(started, broken_off, tmp_path):
    shutil.copytree(broken_off, tmp_path / "run")
    with pytest.raises(TrainerUsageError, match="2 steps are done, but 1 are requested") as caught:
        train_grpo(started.grpo(tmp_path / "run", steps=1))
    assert caught.value.exit_code == 2
    assert train_grpo(started.grpo(tmp_path / "run", steps=2)).num_steps == 2
    with pytest.raises(TrainerUsageError, match=r"is finished: settings\.steps was 2 and is now 1; expected at least"):
        train_grpo(started.grpo(tmp_path / "run", steps=1))


@pytest.mark.slow
def test_a_new_learning_rate_counts_from_the_next_step_on(world, tmp_path, caplog):
    train_sft(world.sft(tmp_path / "run", epochs=1, **FLAT))
    with pytest.raises(TrainerUsageError, match=r"is finished: settings\.learning_rate was 0\.003 and is now 0\.001"):
        train_sft(world.sft(tmp_path / "run", epochs=1, learning_rate=1e-3, **FLAT))
    caplog.clear()
    train_sft(world.sft(tmp_path / "run", epochs=2, learning_rate=1e-3, **FLAT))
    rates = [line["learning_rate"] for line in read_json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert rates == [3e-3, 3e-3, 1e-3, 1e-3]
    assert {"after_step": 2, "setting": "learning_rate", "was": 3e-3, "now": 1e-3} in changes_of(tmp_path / "run")
    assert any("from step 3 on learning_rate is 0.001 (was 0.003)" in record.message for record in caplog.records)
    train_sft(world.sft(tmp_path / "whole", epochs=2, **FLAT))
    assert losses(tmp_path / "run")[:3] == losses(tmp_path / "whole")[:3]
    assert losses(tmp_path / "run")[3] != losses(tmp_path / "whole")[3]


@pytest.mark.slow
def test_a_finished_run_stays_finished_while_its_files_are_refused(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1, **FLAT)
    train_sft(config)
    result = (config.output / "result.json").read_text()
    journal, state = config.output / "metrics.jsonl", config.output / "checkpoints" / "step-000002" / "state.json"
    before = {path: path.read_bytes() for path in (journal, state)}
    for path, content in ((config.output / "rollouts.jsonl", b"[]\n"), (state, b"{}"), (journal, b'{"loss": 1}\n')):
        path.write_bytes(content)
        with pytest.raises(TrainerError, match=r"is not a journal|has another format"):
            train_sft(world.sft(config.output, epochs=2, **FLAT))
        assert (config.output / "result.json").read_text() == result
        if path in before:
            path.write_bytes(before[path])
        else:
            path.unlink()
    assert train_sft(config).num_steps == 2
    assert train_sft(world.sft(config.output, epochs=2, **FLAT)).num_steps == 4


@pytest.mark.slow
@pytest.mark.parametrize("is_flat", [True, False])
def test_an_sft_run_made_longer_says_when_its_schedule_makes_it_another(world, tmp_path, is_flat, caplog):
    options = FLAT if is_flat else {}
    whole = world.sft(tmp_path / "whole", epochs=3, **options)
    train_sft(whole)
    train_sft(world.sft(tmp_path / "run", epochs=1, **options))
    caplog.clear()
    result = train_sft(world.sft(tmp_path / "run", epochs=3, **options))
    assert result.num_steps == len(losses(tmp_path / "run")) == len(losses(whole.output))
    assert (weights(tmp_path / "run") == weights(whole.output)) is is_flat
    remarks = [line["remark"] for line in changes_of(tmp_path / "run") if "remark" in line]
    logged = [record for record in caplog.records if record.name.startswith("longrl_trainer")]
    assert len(remarks) == len(logged) == (0 if is_flat else 1)
    if not is_flat:
        assert "the result is not that of a run started with 3 epochs" in remarks[0]


def test_a_run_of_an_older_version_goes_on(world, tmp_path):
    """It lacks settings that were added later, and has no history."""
    config = world.sft(tmp_path / "run", epochs=1)
    first = train_sft(config)
    old = settings_of(config.output)
    del old["changes"]
    for name in ("parallel", "blind", "questions_may_change"):
        del old["settings"][name]
    (config.output / "settings.json").write_text(json.dumps(old))
    assert train_sft(config) == first
    train_sft(world.sft(tmp_path / "run", epochs=2))
    assert [line["setting"] for line in changes_of(config.output) if "setting" in line] == ["epochs"]
    (config.output / "settings.json").write_text(json.dumps(old))
    with pytest.raises(TrainerUsageError, match=r"settings\.blind was false and is now true"):
        train_sft(world.sft(tmp_path / "run", epochs=1, blind=True))


# Everything that an older version wrote under `settings` for the recipe of `world.grpo`.
OLD_GRPO_SETTINGS: dict[str, Any] = {
    "seed": 0,
    "dtype": "float32",
    "checkpoint_every_steps": 2,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "muon_learning_rate_ratio": 5.0,
    "weight_decay": 0.0,
    "max_gradient_norm": 1.0,
    "train_vision": "frozen",
    "stored": "embeddings",
    "share_prompt": True,
    "data": {"split": "train_rl", "num_frames": 4, "system": None},
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 4,
    "temperature": 1.0,
    "max_response_tokens": 12,
    "warmup_steps": 0,
    "updates_per_batch": 1,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "advantage": "grpo",
    "aggregation": "token",
    "kl_coefficient": 0.0,
    "rewards": {"answer": 0.9, "format": 0.1},
    "max_logprob_gap": 1e-3,
    "journal_groups": 2,
    "sampler": {"engine": "transformers", "memory_bytes": 512 * 2**20, "max_num_seqs": 256},
}


def test_settings_as_older_versions_wrote_them_are_the_same_run(started, broken_off, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(broken_off, output)
    saved = settings_of(output)
    inputs = {
        "model": digest_of_uppermost_files(started.model),
        "records": hashlib.sha256((started.dataset / "records.parquet").read_bytes()).hexdigest(),
    }
    old = {"stage": "grpo", "settings": OLD_GRPO_SETTINGS, "inputs": inputs, "places": saved["places"]}
    (output / "settings.json").write_text(json.dumps(old))
    with pytest.raises(TrainerUsageError, match=r"settings\.data\.fps was null and is now 2\.0"):
        train_grpo(started.grpo(output, steps=4, data__num_frames=None, data__fps=2.0))
    assert settings_of(output)["settings"] == OLD_GRPO_SETTINGS
    whole = started.grpo(tmp_path / "whole", steps=4)
    train_grpo(whole)
    train_grpo(started.grpo(output, steps=4))
    assert weights(output) == weights(whole.output)
    assert {(line["setting"], line["was"], line["now"]) for line in changes_of(output)} == {
        ("steps", 2, 4),
        ("max_logprob_gap", 1e-3, 1e-5),
    }
    assert settings_of(output)["settings"] == settings_of(whole.output)["settings"]


@pytest.mark.slow
def test_a_video_that_is_gone_when_a_run_goes_on_is_refused_by_name(new_world, tmp_path):
    world = new_world(splits=["train_sft"])
    options = FLAT | {"checkpoint_every_steps": 1}
    train_sft(world.sft(tmp_path / "run", epochs=1, **options))
    shutil.copytree(tmp_path / "run", tmp_path / "allowed")
    film = world.dataset / "videos" / "train_sft-red.mp4"
    film.rename(tmp_path / "away.mp4")
    with pytest.raises(TrainerUsageError, match=r"train_sft-0 can't be used now \(.*train_sft-red\.mp4.*\)") as caught:
        train_sft(world.sft(tmp_path / "run", epochs=2, **options))
    assert "`questions_may_change = true`" in str(caught.value)
    result = train_sft(world.sft(tmp_path / "allowed", epochs=2, questions_may_change=True, **options))
    assert result.questions["dropped"] == {"unreadable_video": 2}
    assert any("train_sft-0" in line.get("remark", "") for line in changes_of(tmp_path / "allowed"))
    (tmp_path / "away.mp4").rename(film)
    train_sft(world.sft(tmp_path / "run", epochs=2, **options))
    longer = train_sft(world.sft(tmp_path / "allowed", epochs=3, **options))  # what was dropped stays so
    assert longer.questions["dropped"] == {"unreadable_video": 2}


@pytest.mark.parametrize("model", [SftConfig, GrpoConfig])
def test_a_setting_shapes_the_result_unless_it_says_otherwise(model, world, tmp_path):
    effects = {name: effect_of(field) for name, field in model.model_fields.items()}
    assert effects["weight_decay"] is effects["seed"] is effects["data"] is Effect.SHAPES
    assert [name for name, effect in effects.items() if effect is Effect.FOLLOWING] == ["learning_rate"]
    assert sum(effect is Effect.LENGTH for effect in effects.values()) == 1
    config = world.sft(tmp_path / "run") if model is SftConfig else world.grpo(tmp_path / "run")
    saved = named_settings(config)
    assert not {"output", "model"} & saved.keys()
    assert "dataset" not in saved["data"]
    assert list(find_differences(saved, config)) == []
    (unknown,) = find_differences(saved | {"gone": 1}, config)
    assert (unknown.setting, unknown.effect) == ("gone", Effect.SHAPES)


def test_logs_that_are_there_before_a_run_are_neither_a_run_nor_in_its_way(tmp_path):
    (tmp_path / "logs" / "start").mkdir(parents=True)
    assert list_names(tmp_path) == set()

    def begin() -> None:
        with own_run_folder(tmp_path):
            (tmp_path / "settings.json").write_text("{}")
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        begin()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
