"""An objective by name, its parts set by themselves, and what doesn't fit together."""

from typing import get_args

import pytest

from longrl_trainer.config.effects import find_differences, named_settings
from longrl_trainer.config.objectives import OBJECTIVES, PART_NAMES, ObjectiveParts
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import ObjectiveName
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.objectives.base import build_objective

BEFORE = {"advantage": "grpo", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token", "kl_coefficient": 0.0}
"""What a recipe meant, and a run saved, before there were objectives by name."""


def config_of(**settings) -> GrpoConfig:
    values = {
        "output": "run",
        "steps": 1,
        "learning_rate": 1e-3,
        "model": {"folder": "model"},
        "data": {"dataset": "dataset", "split": "train_rl", "num_frames": 2},
    }
    return parse_config(values | settings, GrpoConfig, source="test")


def test_every_name_has_its_parts_and_a_loss():
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))
    for name in OBJECTIVES:
        assert build_objective(config_of(objective=name)).advantage == OBJECTIVES[name].advantage


def test_without_a_name_a_recipe_means_what_it_did():
    config = config_of()
    assert config.parts == ObjectiveParts()
    saved = named_settings(config)
    assert {name: saved[name] for name in BEFORE} == BEFORE
    assert config.correction == "none"


def test_a_run_from_before_goes_on():
    config = config_of(**BEFORE)
    ours = set(PART_NAMES) | {"objective", "kl_importance", "entropy_coefficient", "sampler_correction"}
    saved = {name: value for name, value in named_settings(config).items() if name not in ours} | BEFORE
    assert list(find_differences(saved, config)) == []
    changed = list(find_differences(saved, config_of(objective="dr_grpo")))
    assert [change.setting for change in changed] == ["advantage", "aggregation", "clip_high", "objective"]


def test_a_part_that_is_set_counts_more_than_the_name():
    config = config_of(objective="gspo", clip_high=0.01, kl_estimator="k2")
    assert (config.parts.loss, config.parts.clip_low, config.parts.clip_high) == ("gspo", 3e-4, 0.01)
    saved = named_settings(config)
    assert (saved["clip_low"], saved["clip_high"], saved["kl_estimator"]) == (3e-4, 0.01, "k2")


def test_a_name_given_as_an_option_replaces_the_recipes_parts():
    recipe = config_of(objective="gspo", aggregation="token")
    given = {name: getattr(recipe, name) for name in type(recipe).model_fields} | {"objective": "sapo"}
    config = GrpoConfig(**given)
    assert (config.parts.loss, config.parts.clip_high, config.parts.aggregation) == ("sapo", 0.28, "token")


@pytest.mark.parametrize(
    ("dtype", "setting", "correction"),
    [
        ("float32", {}, "none"),
        ("bfloat16", {}, "token_truncate"),
        ("bfloat16", {"sampler_correction": "none"}, "none"),
        ("float32", {"sampler_correction": "sequence_mask"}, "sequence_mask"),
    ],
)
def test_the_correction_goes_by_the_dtype_unless_it_is_set(dtype, setting, correction):
    config = config_of(dtype=dtype, **setting)
    assert config.correction == build_objective(config).correction == correction
    assert named_settings(config)["sampler_correction"] == correction


def test_an_unknown_name_is_one_line_with_the_known_ones():
    with pytest.raises(TrainerUsageError) as caught:
        config_of(objective="dappo")
    line = str(caught.value)
    assert line.startswith('test: objective: got "dappo", expected: ')
    assert "\n" not in line
    assert all(repr(name) in line for name in get_args(ObjectiveName))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "sapo", "clip_low": 0.1}, r'clip_low=0\.1 with loss="sapo", which clips nothing'),
        ({"loss": "sapo", "clip_high": 0.1}, r'clip_high=0\.1 with loss="sapo"'),
        ({"kl_place": "reward", "kl_importance": True}, r'expected kl_place="loss"'),
        ({"objective": "gdpo", "kl_place": "reward", "kl_coefficient": 0.1}, r'set kl_place to "loss"'),
        ({"kl_estimator": "k1", "kl_coefficient": 0.1}, "its gradient is 0 on average"),
        ({"objective": "dapo", "rewards": {"answer": 1, "overlong": 1}}, r"rewards\.overlong: .*overlong_buffer=0\.2"),
        ({"clip_low": 1.5}, "clip_low: got 1.5"),
        ({"sampler_correction_cap": 0.5}, "sampler_correction_cap: got 0.5"),
    ],
)
def test_what_does_not_fit_together_is_one_line(settings, message):
    with pytest.raises(TrainerUsageError, match=message) as caught:
        config_of(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_estimator": "k1"},
        {"kl_estimator": "k1", "kl_coefficient": 0.1, "kl_importance": True},
        {"objective": "reinforce_plus_plus", "kl_coefficient": 0.1},
        {"rewards": {"answer": 1, "overlong": 1}},
    ],
)
def test_what_fits_together_is_taken(settings):
    assert config_of(**settings).parts
