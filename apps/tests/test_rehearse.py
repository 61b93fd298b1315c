"""`longrl rehearse`: every shipped recipe at reduced depth, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipe_models import model_in, training_recipes

from longrl.cli import main
from longrl.rehearsal.request import RehearsedVideos, StepLimits, read_stages
from longrl.rehearsal.run import rehearse as rehearse_stage
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.sections import ParallelSection
from longrl_trainer.config.stages import GrpoConfig
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.planner.costs import SCORING_STAGES, forward_operations
from mrsp_engine.planner.published import MODELS
from mrsp_engine.tiny.published import write_published

RECIPES = Path(__file__).parents[1] / "recipes"
THREE = "Qwen2.5-VL-3B"
PENALTIES = {
    "none": "",
    "loss": "kl_coefficient = 0.01",
    "reward": 'kl_coefficient = 0.01\nkl_place = "reward"\nkl_estimator = "k1"',
}


def rehearse(tmp_path: Path, recipe: str, *options: str, exit_status: int = 0) -> dict[str, Any]:
    output = tmp_path / "rehearsal.json"
    arguments = ["rehearse", str(RECIPES / recipe), "--layers", "1", "--output", str(output), *options]
    assert main(arguments) == exit_status
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["qwen2_5_vl_3b_sft.toml", "qwen2_5_vl_3b_grpo.toml"])
def test_shipped_recipes_are_rehearsed_on_two_ranks(tmp_path: Path, recipe: str) -> None:
    """Here without recomputation, after whose first layer the gradients of a model of one layer aren't all there."""
    text = (RECIPES / recipe).read_text()
    assert 'activation_checkpointing = "recompute"\n' in text
    (tmp_path / recipe).write_text(text.replace('activation_checkpointing = "recompute"\n', ""))
    found = rehearse(tmp_path, str(tmp_path / recipe), "--model", THREE, "--gpus", "2")
    assert {"ranks", "collectives", "same_order", "flops", "planned"} <= found.keys()
    assert found["same_order"]
    assert [rank["rank"] for rank in found["ranks"]] == [0, 1]
    for rank in found["ranks"]:
        assert rank["peak_bytes"] == sum(rank["parts"].values()) > 0
    assert found["collectives"]["all_gather"]["count"] > 0
    assert found["collectives"]["reduce_scatter"]["bytes"] > 0
    assert found["flops"] > 1e12
    # A checkpoint has the trained weights beside their moments, and all ranks write their part of it.
    for rank, planned in zip(found["ranks"], found["checkpoint"]["ranks"], strict=True):
        moments = rank["stages"]["checkpoint"]["parts"]["optimizer"]
        assert planned["copied_bytes"] >= planned["num_bytes"] == pytest.approx(1.5 * moments, rel=0.01)
    assert found["checkpoint"]["collectives"]["plain objects"]["count"] > 0
    # The planner's arithmetic and the step's own code agree on every part.
    errors = found["planned_errors"]
    assert errors.keys() >= {"weights", "optimizer", "gradients", "gathered weights", "activations"}
    assert all(abs(error) <= 0.1 for error in errors.values()), errors


@pytest.mark.long
@pytest.mark.parametrize("recipe", training_recipes(), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_rehearsed(recipe: Path) -> None:
    """One rank, and few layers: of both kinds where a model has two. At full depth: `benchmarks/recipes.py`."""
    model = model_in(recipe)
    (stage,) = read_stages(recipe, model.published)
    shape, changes = MODELS[model.published], {"parallel": ParallelSection()}
    if shape.linear:  # in chunks, one after the other, which takes long
        changes |= {"data": stage.config.data.model_copy(update={"num_frames": 8}), "max_response_tokens": 64}
    stage = replace(stage, config=stage.config.model_copy(update=changes))
    found = rehearse_stage(
        stage,
        num_ranks=1,
        memory_bytes=80e9,
        videos=RehearsedVideos(height=720, width=1280, seconds=None if stage.config.data.num_frames else 3600, fps=30),
        limits=StepLimits(num_layers=4 if shape.linear else 1, num_rows=1, response_tokens=64),
    )
    (rank,) = found.ranks
    assert found.facts.too_long is None or "8192_frames" in recipe.stem  # unless the checkpoint pools frames
    assert rank.peaks["update"].parts["activations"] > 0
    if isinstance(stage.config, GrpoConfig):
        assert rank.peaks["sync"].parts["sampler"] > stage.config.sampler.memory_bytes
    assert found.facts.num_frames == (0 if shape.vision is None else stage.config.data.num_frames or 3600)


@pytest.mark.long
def test_every_rank_learns_even_if_each_judges_one_response_of_a_question(tmp_path: Path) -> None:
    """As on eight ranks with eight responses; a group of equal rewards would be computed by none."""
    recipe = tmp_path / "recipe.toml"
    text = (RECIPES / "qwen2_5_vl_3b_grpo.toml").read_text()
    recipe.write_text(text.replace("group_size = 8", "group_size = 2"))
    found = rehearse(tmp_path, str(recipe), "--model", THREE, "--gpus", "2", "--rows", "2")
    first, second = (rank["flops"]["update"] for rank in found["ranks"])
    assert first == second > 1e12
    assert all(rank["stages"]["update"]["parts"]["gradients"] > 0 for rank in found["ranks"])


@pytest.mark.long
def test_features_of_the_middle_layers_are_rehearsed_too(tmp_path: Path) -> None:
    options = ("--model", "Qwen3-VL-8B", "--gpus", "2", "--rows", "2")
    found = rehearse(tmp_path, "qwen3_vl_8b_grpo.toml", *options)
    assert found["same_order"]
    assert all(rank["stages"]["update"]["parts"]["activations"] > 0 for rank in found["ranks"])


@pytest.mark.long
def test_a_divergence_takes_the_passes_that_the_planner_counts(tmp_path: Path) -> None:
    """In the loss one of the reference; in the reward one of the policy besides, before anything is compared."""
    recipe = (RECIPES / "qwen2_5_vl_3b_grpo.toml").read_text()
    options = (
        "--layers",
        "1",
        "--model",
        THREE,
        "--gpus",
        "1",
        "--rows",
        "1",
        "--output",
        str(tmp_path / "found.json"),
    )
    operations: dict[str, float] = {}
    for kl, settings in PENALTIES.items():
        (tmp_path / "recipe.toml").write_text(f"{settings}\n{recipe}")
        assert main(["rehearse", str(tmp_path / "recipe.toml"), *options]) == 0
        found = json.loads((tmp_path / "found.json").read_text())
        operations[kl] = found["ranks"][0]["flops"]["update"]
        assert ("reference" in found["planned"]) == (kl != "none")
    step, shape = found["step"], replace(MODELS[THREE], num_layers=1)
    config = load_recipe(tmp_path / "recipe.toml", GrpoConfig)
    lengths = (config.max_response_tokens,) * config.group_size
    row = PackedLayout((GroupLengths(step["prompt_tokens"], lengths),))
    one_pass = sum(forward_operations(shape, row, sum(lengths)))
    for kl, more in SCORING_STAGES.items():
        assert operations[kl] - operations["none"] == pytest.approx(len(more) * one_pass, rel=0.02), kl


@pytest.mark.slow
def test_questions_that_training_drops_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "published"
    write_published("qwen2_5_vl_3b", folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.get("text_config", config)["max_position_embeddings"] = 1100
    path.write_text(json.dumps(config))
    found = rehearse(tmp_path, "qwen2_5_vl_3b_grpo.toml", "--model", str(folder), "--gpus", "1", "--rows", "1")
    reason = "more than the 1100 positions the model was trained for; lower data.num_frames or data.frame_pixels"
    assert reason in found["step"]["too_long"]
    assert f"training drops such a question: {found['step']['too_long']}" in capsys.readouterr().out


@pytest.mark.long
def test_the_quickstart_is_rehearsed_with_both_stages(tmp_path: Path) -> None:
    found = rehearse(tmp_path, "quickstart.toml", "--gpus", "1")
    assert [stage["stage"] for stage in found["stages"]] == ["sft", "grpo"]


@pytest.mark.long
def test_a_folder_with_a_configuration_is_enough_and_too_little_memory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "published"
    write_published("qwen2_5_vl_7b", folder)
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    options = ("--model", str(folder), "--gpus", "1", "--gpu-memory", "3GB")
    found = rehearse(tmp_path, "qwen2_5_vl_3b_grpo.toml", *options, exit_status=1)
    assert found["ranks"][0]["parts"]["sampler"] > 16 * 2**30
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert "GB on a GPU of 3GB" in line
    assert "sampler; lower sampler.memory_bytes, or use more --gpu-memory" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["qwen2_5_vl_3b_evaluate.toml"], "evaluates a model and trains none; expected a recipe of `longrl sft` or"),
        (["nothing.toml"], "there is no such recipe"),
        (["qwen2_5_vl_3b_grpo.toml"], "neither a folder with a config.json nor one of"),
        (["qwen2_5_vl_3b_grpo.toml", "--gpus", "0"], "--gpus 0: expected 1 or more"),
        (["qwen2_5_vl_3b_grpo.toml", "--gpu-memory", "much"], "--gpu-memory 'much': expected a number and one of GB"),
        (["qwen2_5_vl_3b_grpo.toml", "--layers", "0"], "--layers 0: expected 1 or more"),
        (["qwen2_5_vl_3b_grpo.toml", "--video-height", "0"], "--video-height 0: expected more than 0"),
        (["qwen2_5_vl_3b_grpo.toml", "--model", "Qwen9"], "model 'Qwen9': neither a folder with a config.json nor"),
    ],
)
def test_wrong_requests_get_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES)
    assert main(["rehearse", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("sharding", "words"),
    [
        ('kind = "zero3"', 'sharding.kind="zero3": what DeepSpeed does can\'t be rehearsed; expected "none" or'),
        ('offload = "all"', 'sharding.offload="all" can\'t be rehearsed; expected "none"'),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(
    sharding: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((RECIPES / "qwen2_5_vl_3b_sft.toml").read_text() + f"\n[sharding]\n{sharding}\n")
    assert main(["rehearse", str(recipe), "--model", THREE]) == 2
    line = capsys.readouterr().err.strip()
    assert words in line
    assert "\n" not in line
