"""Recipes: every mistake is one line that names the file, the key, its value and what is expected."""

import os
from pathlib import Path

import pytest

from longrl_trainer.config.recipes import first_difference, load_recipe
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerUsageError

GOOD = """
output = "runs/grpo"
learning_rate = 1e-4
steps = 3

[model]
folder = "model"

[data]
dataset = "dataset"
split = "train_rl"
num_frames = 8

[rewards]
answer = 1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_good_recipe_keeps_its_values_and_fills_in_defaults(tmp_path):
    config = load_recipe(write(tmp_path, GOOD), GrpoConfig)
    assert (config.output, config.steps, config.model.folder) == (Path("runs/grpo"), 3, Path("model"))
    assert (config.group_size, config.parts.clip_high, config.sampler.engine) == (8, 0.28, "vllm")
    assert config.rewards == {"answer": 1.0}


@pytest.mark.parametrize(
    ("lines", "limit"),
    [
        ("", 1e-5),
        ('dtype = "float64"', 1e-5),
        ('dtype = "bfloat16"', 0.05),
        ("max_logprob_gap = 2e-3", 2e-3),
        ('dtype = "bfloat16"\nmax_logprob_gap = 1e-6', 1e-6),
    ],
)
def test_the_gap_that_stops_a_run_goes_by_the_dtype_unless_it_is_set(tmp_path, lines, limit):
    config = load_recipe(write(tmp_path, f"{lines}\n{GOOD}"), GrpoConfig)
    assert config.logprob_gap_limit == limit
    assert config.model_dump(mode="json")["max_logprob_gap"] == limit  # as a run's settings are saved
    coarse = GrpoConfig(**{name: getattr(config, name) for name in config.model_fields_set} | {"dtype": "bfloat16"})
    assert coarse.logprob_gap_limit == (0.05 if config.max_logprob_gap is None else limit)  # an option over a recipe


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 3", "stepz = 3", ["stepz: unknown key", "did you mean 'steps'", "group_size"]),
        ("num_frames", "frames", ["data.frames: unknown key", "num_frames"]),
        ("steps = 3", "steps = 2.5", ["steps: got 2.5", "integer"]),
        ("steps = 3", "steps = true", ["steps: got true", "integer"]),
        ("steps = 3", 'steps = "3"', ['steps: got "3"', "integer"]),
        ("steps = 3", "steps = 0", ["steps: got 0", "greater than or equal to 1"]),
        ("steps = 3", "", ["steps: missing"]),
        ("1e-4", "nan", ["learning_rate: got NaN", "finite"]),
        ('"train_rl"', '"test"', ['data.split: got "test"', "'train_rl'", "'held_out'"]),
        ('folder = "model"', "folder = 7", ["model.folder: got 7", "string"]),
        ("answer = 1", 'answer = "much"', ['rewards.answer: got "much"', "number"]),
        ("steps = 3", "steps = ", ["not valid TOML", "line"]),
    ],
)
def test_a_mistake_gives_one_line_with_file_key_and_expectation(tmp_path, old, new, expected):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(TrainerUsageError) as caught:
        load_recipe(path, GrpoConfig)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert all(part in line for part in expected), line
    assert caught.value.exit_code == 2


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path):
    with pytest.raises(TrainerUsageError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere.toml", SftConfig)
    with pytest.raises(TrainerUsageError, match="is a folder, expected a regular file"):
        load_recipe(tmp_path, SftConfig)
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(TrainerUsageError, match="is a FIFO, expected a regular file"):
        load_recipe(tmp_path / "pipe.toml", SftConfig)
    (tmp_path / "deep.toml").write_text("steps = " + "[" * 100_000)
    with pytest.raises(TrainerUsageError, match="not valid TOML"):
        load_recipe(tmp_path / "deep.toml", SftConfig)


def test_every_setting_is_explained():
    def sections(model):
        yield model
        for field in model.model_fields.values():
            if hasattr(field.annotation, "model_fields"):
                yield from sections(field.annotation)

    for config in (SftConfig, GrpoConfig, EvaluateConfig):
        for section in sections(config):
            for name, field in section.model_fields.items():
                is_section = hasattr(field.annotation, "model_fields")
                assert is_section or field.description, f"{section.__name__}.{name} has no description"


def test_the_first_difference_names_the_key_and_both_values():
    old = {"steps": 3, "model": {"folder": "a", "store": "s"}, "same": [1]}
    assert first_difference(old, old) is None
    assert first_difference(old, old | {"steps": 4}) == "steps was 3 and is now 4"
    assert (
        first_difference(old, old | {"model": {"folder": "b", "store": "s"}}) == 'model.folder was "a" and is now "b"'
    )
    assert first_difference(old, {"steps": 3, "model": old["model"]}) == "same was [1] and is now null"


def test_a_reward_may_have_a_table_of_its_own(tmp_path):
    table = GOOD.replace("answer = 1", "answer = 1\n[rewards.judge]\nweight = 0.5\nserver = 'x'")
    config = load_recipe(write(tmp_path, table), GrpoConfig)
    assert config.rewards == {"answer": 1.0, "judge": {"weight": 0.5, "server": "x"}}
    with pytest.raises(TrainerUsageError, match=r"toml: rewards\.judge\.weight: missing; this setting"):
        load_recipe(write(tmp_path, table.replace("weight = 0.5\n", "")), GrpoConfig)
