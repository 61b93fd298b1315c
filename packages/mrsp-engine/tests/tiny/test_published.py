"""Published layouts: the files, names and keys that readers of every version look for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.tiny.published import PUBLISHED_KINDS, write_published


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for kind in PUBLISHED_KINDS:
        write_published(kind, root / kind)
    return root


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def weight_names(folder: Path) -> dict[str, str]:
    """Dtype by name, of all files in a folder."""
    found: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_shards_and_their_index(folders: Path, kind: str) -> None:
    index_files = list((folders / kind).rglob("model.safetensors.index.json"))
    assert len(index_files) == (kind != "qwen2_5_1_5b")
    for path in index_files:
        index = json.loads(path.read_text())
        names = weight_names(path.parent)
        assert index["weight_map"].keys() == names.keys()
        assert len(set(index["weight_map"].values())) == len(list(path.parent.glob("*.safetensors"))) > 1
        assert set(names.values()) == {"BF16"}


@pytest.mark.parametrize(
    ("kind", "names", "is_tied"),
    [
        ("qwen2_5_vl_3b", {"visual.merger.ln_q.weight", "model.layers.0.self_attn.q_proj.bias"}, True),
        ("qwen2_5_vl_7b", {"visual.merger.ln_q.weight", "model.norm.weight"}, False),
        ("qwen2_vl_2b", {"visual.merger.ln_q.weight", "visual.blocks.0.mlp.fc1.weight"}, True),
        (
            "qwen3_5_27b",
            {"model.language_model.layers.0.linear_attn.A_log", "mtp.layers.0.self_attn.q_proj.weight"},
            False,
        ),
        ("qwen3_vl_30b_a3b", {"model.language_model.layers.0.mlp.experts.gate_up_proj"}, False),
        ("qwen3_vl_4b", {"model.visual.merger.norm.weight", "model.language_model.norm.weight"}, True),
        ("qwen3_vl_8b", {"model.visual.merger.norm.weight", "model.language_model.norm.weight"}, False),
        ("qwen2_5_1_5b", {"model.norm.weight"}, True),
        ("qwen3_8b", {"model.layers.0.self_attn.q_norm.weight"}, False),
        ("nvila_8b/llm", {"model.norm.weight"}, False),
        ("nvila_8b/vision_tower", {"vision_model.embeddings.position_embedding.weight"}, True),
        ("nvila_8b/mm_projector", {"layers.1.weight", "layers.2.bias"}, True),
    ],
)
def test_names_of_weights(folders: Path, kind: str, names: set[str], is_tied: bool) -> None:
    found = weight_names(folders / kind)
    assert names <= found.keys()
    assert ("lm_head.weight" in found) != is_tied


def test_keys_that_later_versions_renamed(folders: Path) -> None:
    flat = config_of(folders / "qwen2_5_vl_7b")
    assert flat["rope_scaling"] == {"type": "mrope", "mrope_section": [4, 6, 6]}
    assert (flat["rope_theta"], flat["torch_dtype"]) == (1e6, "bfloat16")
    assert "rope_parameters" not in flat
    text = config_of(folders / "qwen3_vl_4b")["text_config"]
    assert text["num_attention_heads"] * text["head_dim"] != text["hidden_size"]
    assert isinstance(config_of(folders / "nvila_lite_2b")["video_encoder"], str)
    assert isinstance(config_of(folders / "longvila_r1_7b")["video_encoder"], dict)
    assert "video_encoder" not in config_of(folders / "nvila_8b")
    ids = json.loads((folders / "nvila_8b" / "llm" / "added_tokens.json").read_text())
    assert ids["<vila/video>"] >= config_of(folders / "nvila_8b" / "llm")["vocab_size"]


def test_experts_lie_as_published(folders: Path) -> None:
    """Rows are what goes in, columns what comes out; transformers 5 has them the other way round."""
    text = config_of(folders / "qwen3_vl_30b_a3b")["text_config"]
    sizes = text["hidden_size"], text["moe_intermediate_size"], text["num_experts"]
    shapes: dict[str, list[int]] = {}
    for path in (folders / "qwen3_vl_30b_a3b").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    experts = "model.language_model.layers.0.mlp.experts"
    assert shapes[f"{experts}.gate_up_proj"] == [sizes[2], sizes[0], 2 * sizes[1]]
    assert shapes[f"{experts}.down_proj"] == [sizes[2], sizes[1], sizes[0]]


def test_the_seed_decides(folders: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    write_published("longvila_r1_7b", tmp_path / "same")
    write_published("longvila_r1_7b", tmp_path / "other", seed=1)
    assert torch.random.get_rng_state().equal(before)
    first = folders / "longvila_r1_7b"
    changed: set[str] = set()
    for path in (path.relative_to(first) for path in first.rglob("*") if path.is_file()):
        assert (tmp_path / "same" / path).read_bytes() == (first / path).read_bytes()
        if (tmp_path / "other" / path).read_bytes() != (first / path).read_bytes():
            changed.add(path.suffix)
    assert changed == {".safetensors"}


def test_refusals(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUsageError, match="kind 'gpt': expected one of longvila_r1_7b, "):
        write_published("gpt", tmp_path / "model")
    with pytest.raises(EngineUsageError, match="not an empty folder"):
        write_published("qwen3_4b", folders / "qwen3_4b")
