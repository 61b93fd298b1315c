"""Which rotary settings config.json may have, which are refused, and with which messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.planner.checkpoints import read_shape
from mrsp_engine.rotary import longest_context, read_rope, refuse_rotary
from mrsp_engine.tiny.families import build_tiny

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
SECTIONS = {"mrope_section": [8, 4, 4]}
PATH = Path("model/config.json")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", **SECTIONS}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "rope_type": "default", **SECTIONS}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN, **SECTIONS}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "mrope", **SECTIONS}, "text_config": {"rope_scaling": {"type": "mrope", **SECTIONS}}},
    ],
)
def test_what_both_sides_read_alike_is_taken(config: dict[str, Any]) -> None:
    refuse_rotary(PATH, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' in rope_scaling"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope' in rope_parameters"),
        ({"rope_scaling": {"type": "su"}}, "rope_type='longrope' in rope_scaling"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "expected one of default, linear, llama3, yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, **SECTIONS}}, "expected one of default, yarn$"),
        ({"text_config": {"rope_scaling": {"rope_type": "llama3", **SECTIONS}}}, "rope_type='llama3' in rope_scaling"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "default"}}, "type='yarn' and rope_type='default'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (
            {"rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "whose rope_theta would be lost",
        ),
        ({"rope_scaling": {"type": "yarn", **YARN}, "text_config": {"rope_theta": 1e6}}, "move it into text_config"),
    ],
)
def test_what_they_would_not_is_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineUsageError, match=message) as caught:
        refuse_rotary(PATH, config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model/config.json: ")


def test_old_names_are_understood() -> None:
    assert read_rope({"rope_scaling": {"type": "mrope"}})["rope_type"] == "default"
    assert read_rope({"rope_scaling": {"type": "yarn", "factor": 4.0}})["factor"] == 4.0
    assert read_rope({"rope_scaling": {}, "rope_parameters": {"rope_type": "linear"}})["rope_type"] == "linear"


def test_yarn_adds_positions() -> None:
    assert longest_context({"max_position_embeddings": 40960, "rope_scaling": {"type": "yarn", **YARN}}) == 131072
    assert longest_context({"max_position_embeddings": 262144, "rope_scaling": {"type": "yarn", **YARN}}) == 262144
    assert longest_context({"max_position_embeddings": 40960, "rope_scaling": None}) == 40960


def edit(folder: Path, rope: dict[str, Any]) -> None:
    """Add settings to the existing ones, as somebody would by hand."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = rope
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl"])
def test_a_policy_is_not_loaded_with_other_positions_than_were_meant(family: str, tmp_path: Path) -> None:
    build_tiny(family, tmp_path / "model")
    edit(tmp_path / "model", {"rope_type": "yarn", **YARN})
    with pytest.raises(EngineUsageError, match=r"config\.json: has rope_scaling (in addition to|outside)"):
        load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))


def test_the_planner_knows_the_positions_that_yarn_adds(tmp_path: Path) -> None:
    build_tiny("qwen3", tmp_path / "model")
    before = read_shape(tmp_path / "model").max_positions
    edit(tmp_path / "model", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": before})
    assert read_shape(tmp_path / "model").max_positions == 2 * before
