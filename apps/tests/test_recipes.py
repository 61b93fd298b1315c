"""Every shipped recipe parses, and mistakes in a quickstart recipe are reported clearly."""

import json
from pathlib import Path

import pytest
from recipe_models import training_recipes

from longrl.cli import main
from longrl.commands.recipes import resolve_config
from longrl.errors import AppUsageError
from longrl.pictures.config import PICTURES_RECIPE
from longrl.quickstart.config import QUICKSTART_RECIPE, SOUND_RECIPE, load_quickstart
from longrl.stages import RECIPES_FOLDER
from longrl_omni.generation.config.recipes import GenerateConfig, GenerateGrpoConfig
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerUsageError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "recipes.json"
TINY_RECIPE = Path(__file__).parent / "tiny_quickstart.toml"
MODELS = {
    "generate_grpo": GenerateGrpoConfig,
    "generate": GenerateConfig,
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "evaluate": EvaluateConfig,
}
TRAINING_RECIPES = sorted(
    path for path in RECIPES_FOLDER.glob("*.toml") if path not in (QUICKSTART_RECIPE, SOUND_RECIPE, PICTURES_RECIPE)
)


@pytest.mark.parametrize("path", training_recipes(), ids=lambda path: path.stem)
def test_the_head_of_a_recipe_says_what_was_found_for_it(path):
    """The figures of `benchmarks/recipes.py`; a recipe that it doesn't know, or that doesn't fit, isn't shipped."""
    rows = json.loads(RESULTS.read_text())["rows"]
    head = path.read_text().partition("\n\n")[0]
    found = {name: row for name, row in rows.items() if name.split()[0] == path.stem}
    assert found
    for row in found.values():
        is_rehearsed = "peak_gb" in row
        memory = row["peak_gb"] if is_rehearsed else row["predicted_gb"]
        assert memory <= row["gpu_memory_gb"]
        assert f"{row['gpu_memory_gb']} GB" in head
        assert f"{memory:.1f} GB ({'rehearsed' if is_rehearsed else 'predicted'})" in head
        assert f"{row['predicted_seconds']:.0f} s" in head
        assert not is_rehearsed or row["step"]["too_long"] is None


def test_recipes_are_found():
    assert QUICKSTART_RECIPE.is_file()
    assert len(TRAINING_RECIPES) >= 3


@pytest.mark.parametrize("path", TRAINING_RECIPES, ids=lambda path: path.stem)
def test_training_recipes_parse(path):
    load_recipe(path, next(model for ending, model in MODELS.items() if path.stem.endswith(f"_{ending}")))


@pytest.mark.parametrize("path", [QUICKSTART_RECIPE, SOUND_RECIPE, TINY_RECIPE], ids=lambda path: path.stem)
def test_quickstart_recipes_parse_and_get_their_places(path, tmp_path):
    config = load_quickstart(path, output=tmp_path, seed=3)
    assert config.sft.seed == config.grpo.seed == 3
    assert config.grpo.model.folder == config.sft.output / "model"
    assert config.grpo.model.store == config.sft.model.store
    assert [data.split for data in config.data_in_use()][:3] == ["train_sft", "train_rl", "held_out"]
    evaluation = config.evaluation_config(tmp_path / "model", tmp_path / "x.json", num_frames=5, lacking="blind")
    assert (evaluation.data.split, evaluation.data.num_frames, evaluation.blind) == ("held_out", 5, True)
    assert evaluation.temperature == config.evaluation.temperature


def test_rewards_with_and_without_settings_can_be_typed(tmp_path):
    recipe = tmp_path / "grpo.toml"
    recipe.write_text(
        'output = "run"\nsteps = 1\nlearning_rate = 1e-3\n[model]\nfolder = "m"\n'
        '[data]\ndataset = "d"\nsplit = "train_rl"\nnum_frames = 2\n'
        '[rewards]\nanswer = 0.9\n[rewards.judge]\nweight = 0.5\nprompt = "a"\ntries = 3\n'
    )
    options = ["--rewards.answer", "0.5", "--rewards.judge.weight", "0.7", "--rewards.judge.tries", "4"]
    config = resolve_config("grpo", [str(recipe), *options], GrpoConfig, example="")
    assert config.rewards == {"answer": 0.5, "judge": {"weight": 0.7, "prompt": "a", "tries": 4}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.num-frames", "0"], "--data.num-frames 0: expected greater than or equal to 1"),
        (["--data.num_frames=0"], "--data.num-frames 0: expected greater than or equal to 1"),
        (["--evaluation.every-steps", "-1"], "--evaluation.every-steps -1: expected greater than or equal to 0"),
        (["--data.fps", "2"], "data: num_frames=2 with fps=2.0: set one of them"),
        (["--steps", "0"], "--steps 0: expected greater than or equal to 1"),
    ],
)
def test_a_wrong_option_is_named_with_its_section(tmp_path, options, message):
    recipe = tmp_path / "grpo.toml"
    recipe.write_text(
        'output = "run"\nsteps = 1\nlearning_rate = 1e-3\n[model]\nfolder = "m"\n'
        '[data]\ndataset = "d"\nsplit = "train_rl"\nnum_frames = 2\n[rewards]\nanswer = 0.9\n'
    )
    with pytest.raises(AppUsageError) as refused:
        resolve_config("grpo", [str(recipe), *options], GrpoConfig, example="")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("command", "recipe", "other"),
    [
        ("sft", "qwen2_5_vl_3b_grpo", "grpo"),
        ("grpo", "qwen2_5_vl_3b_sft", "sft"),
        ("grpo", "qwen2_5_vl_3b_evaluate", "evaluate"),
        ("generate", "sd3_5_medium_generate_grpo", "generate-grpo"),
        ("sft", "quickstart", "quickstart"),
    ],
)
def test_a_recipe_of_another_command_is_said_to_be_that(command, recipe, other, capsys):
    path = RECIPES_FOLDER / f"{recipe}.toml"
    assert main([command, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {path}: this looks like a recipe of `longrl {other}`, not of `longrl {command}`; start it with that"
    )


def test_a_misspelt_recipe_is_of_its_own_command(tmp_path, capsys):
    recipe = tmp_path / "sft.toml"
    recipe.write_text((RECIPES_FOLDER / "qwen2_5_vl_3b_sft.toml").read_text().replace("epochs", "epoch"))
    assert main(["sft", str(recipe)]) == 2
    assert "epoch: unknown key; did you mean 'epochs'?" in capsys.readouterr().err


def test_the_quickstart_asks_enough_held_out_questions(tmp_path):
    world = load_quickstart(QUICKSTART_RECIPE, output=tmp_path, seed=0).world
    assert world.held_out_videos * world.questions_per_video >= 200


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", r"sft\.epoch: unknown key; did you mean 'epochs'\?"),
        ("epochs = 2", 'epochs = "2"', r'sft\.epochs: got "2", expected: integer'),
        ("epochs = 2", "seed = 2", r"sft\.seed: the quickstart sets this itself; remove the line"),
        ("num_frames = [2, 4]", "num_frames = [4, 2]", "must ascend"),
        ("num_frames = [2, 4]", "num_frames = [2]", "must contain grpo.data.num_frames = 4"),
        ("seconds = 16.0", "seconds = 9.0", "do not fit"),
        ("[sft]", "sft = 3\n[other]", r"(sft|other)"),
        ("[model]", "[model", "not valid TOML"),
    ],
)
def test_mistakes_in_a_quickstart_recipe_are_one_clear_line(tmp_path, old, new, message):
    text = TINY_RECIPE.read_text()
    assert old in text
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text.replace(old, new, 1))
    with pytest.raises(TrainerUsageError, match=message) as caught:
        load_quickstart(recipe, output=tmp_path, seed=0)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(recipe))
