"""A checkpoint folder without weights, for a model of which only the name or the configuration is at hand.

It has the files of a small published-like checkpoint of the same kind (`mrsp_engine.tiny.published`): tokenizer,
template and processor. Its configuration has the real model's values, except the ids of tokens, which are those of that
tokenizer. A prompt's text thus has other tokens than with the real tokenizer, and nearly as many.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from longrl_files.json_text import parse_json
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.checkpoints import without_reports
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER, PROJECTOR_FOLDER, TOWER_FOLDER
from mrsp_engine.planner.checkpoints import find_shape
from mrsp_engine.planner.shapes import ModelShape, VisionShape
from mrsp_engine.planner.videos import VilaVideos
from mrsp_engine.tiny.published import write_published
from mrsp_engine.tiny.qwen2_5_omni import create_tiny_qwen2_5_omni

__all__ = ["write_without_weights"]

_PARTS = (LANGUAGE_FOLDER, TOWER_FOLDER, PROJECTOR_FOLDER)
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
_OMNI = "qwen2_5_omni"
_KIND_OF_TYPE = {
    "qwen2_5_omni": _OMNI,
    "qwen2_5_vl": "qwen2_5_vl_7b",
    "qwen2_vl": "qwen2_vl_2b",
    "qwen3_5": "qwen3_5_27b",
    "qwen3_vl": "qwen3_vl_8b",
    "qwen3_vl_moe": "qwen3_vl_30b_a3b",
    "qwen2": "qwen2_5_7b",
    "qwen3": "qwen3_8b",
    "vila": "longvila_r1_7b",
    "llava_llama": "nvila_8b",
}
_KIND_OF_NAME = {
    "Qwen2.5-VL": "qwen2_5_vl_7b",
    "Qwen2-VL": "qwen2_vl_2b",
    "Qwen3-VL": "qwen3_vl_8b",
    "Qwen3.5": "qwen3_5_27b",
    "Qwen3": "qwen3_8b",
    "Qwen2.5-Omni": _OMNI,
    "Qwen2.5": "qwen2_5_7b",
    "LongVILA": "longvila_r1_7b",
    "NVILA-Lite": "nvila_lite_2b",
    "NVILA-8B": "longvila_r1_7b",
}
"""The first name that a model's begins with counts."""
_ID_ENDINGS = ("_token_id", "_token_index")
_OMNI_AUDIO_TOWER = {
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "num_mel_bins": 128,
}
_OMNI_PROCESSOR = {"min_pixels": 3136, "max_pixels": 12845056, "feature_size": 128}
"""The same in both sizes of Qwen2.5-Omni."""
_CHANNELS_PER_VISION_HEAD = {14: 80, 16: 64}
"""Channels of a vision tower's head, by the patch size that tells the series apart."""


def write_without_weights(model: str, folder: Path, *, num_layers: int | None = None) -> None:
    """Fill an empty folder with everything of a checkpoint but its weights.

    Args:
        model: Name of a public checkpoint, or a folder with its config.json.
        folder: The output folder.
        num_layers: Keep at most this many layers of the language model and of the vision tower; all if None.

    Raises:
        EngineUsageError: It is neither, or its kind can't be rehearsed.
    """
    source = Path(model)
    if (source / "config.json").is_file():
        checkpoint = CheckpointFolder(source)
        model_type = str(checkpoint.read("config.json").get("model_type"))
        if model_type not in _KIND_OF_TYPE:
            raise EngineUsageError(
                f"{source}: models of type {model_type!r} can't be rehearsed; expected one of "
                f"{', '.join(sorted(_KIND_OF_TYPE))}"
            )
        _write_kind(_KIND_OF_TYPE[model_type], folder)
        for path in _configurations(folder):
            name = str(path.relative_to(folder))
            _change(path, lambda values, name=name: _with_values(values, checkpoint.read(name)))
        for name in _PROCESSOR_FILES:
            values = checkpoint.find(name)
            if values is not None:
                (folder / name).write_text(json.dumps(values), encoding="utf-8")
    else:
        shape = find_shape(model)
        kind = next((kind for name, kind in _KIND_OF_NAME.items() if shape.name.startswith(f"{name}-")), None)
        if kind is None:
            raise EngineUsageError(
                f"model {model!r}: can't be rehearsed by its name; set a folder with its config.json"
            )
        _write_kind(kind, folder)
        for path in _configurations(folder):
            _change(path, lambda values, place=path.parent.name: _with_shape(values, shape, place))
    if (folder / TOWER_FOLDER).is_dir():
        _fit_frames(folder / TOWER_FOLDER)
    for path in folder.rglob("*.safetensors*"):
        path.unlink()
    if num_layers is not None:
        for path in _configurations(folder):
            _change(path, lambda values: _with_fewer_layers(values, num_layers))


def _write_kind(kind: str, folder: Path) -> None:
    if kind == _OMNI:
        with without_reports():  # about the ids of the parts that speak, which aren't used
            create_tiny_qwen2_5_omni(folder)
        _change(folder / _PROCESSOR_FILES[0], lambda values: values | _OMNI_PROCESSOR)
    else:
        write_published(kind, folder)


def _configurations(folder: Path) -> list[Path]:
    paths = [folder / "config.json", *(folder / part / "config.json" for part in _PARTS)]
    return [path for path in paths if path.is_file()]


def _change(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    values = cast(dict[str, Any], parse_json(path.read_bytes()))
    path.write_text(json.dumps(change(values), indent=2), encoding="utf-8")


def _fit_frames(tower: Path) -> None:
    """Let the image processor make frames of the size that VILA's tower takes."""
    edge = cast(dict[str, Any], parse_json((tower / "config.json").read_bytes()))["image_size"]
    _change(tower / "preprocessor_config.json", lambda values: values | {"size": {"height": edge, "width": edge}})


def _with_values(values: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, Any]:
    """The real values, with the ids of tokens of the given ones."""
    changed = {name: value for name, value in values.items() if name.endswith(_ID_ENDINGS)}
    for name, value in real.items():
        if name.endswith(_ID_ENDINGS):
            continue
        section = values.get(name)
        changed[name] = _with_values(section, value) if isinstance(section, dict) and isinstance(value, dict) else value
    changed.pop("quantization_config", None)
    return changed


def _with_shape(values: dict[str, Any], shape: ModelShape, place: str) -> dict[str, Any]:
    """A configuration, or that of the part in a folder, with the sizes of a published model."""
    if place == TOWER_FOLDER and shape.vision is not None:
        return values | _siglip_sizes(shape.vision)
    if place == PROJECTOR_FOLDER:
        return values
    changed = dict(values)
    if "thinker_config" in values:
        return changed | {"thinker_config": _with_shape(values["thinker_config"], shape, place)}
    if "vision_config" in values and shape.vision is not None:
        changed["vision_config"] = _with_vision(values["vision_config"], shape, shape.vision)
    if "audio_config" in values:
        changed["audio_config"] = values["audio_config"] | _OMNI_AUDIO_TOWER | {"output_dim": shape.hidden_size}
    if shape.vision is not None and isinstance(shape.vision.videos, VilaVideos):
        pool = shape.vision.videos.frames.syntax.pool
        if pool != (1, 1, 1):
            changed["video_encoder"] = {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [list(pool)]}
    if "text_config" in values:
        changed["text_config"] = _with_language(values["text_config"], shape)
        return changed | {"tie_word_embeddings": shape.is_tied}
    return _with_language(changed, shape)


def _with_language(values: dict[str, Any], shape: ModelShape) -> dict[str, Any]:
    changed = values | {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.heads.query,
        "num_key_value_heads": shape.heads.key,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.is_tied,
        "max_position_embeddings": shape.max_positions,
    }
    changed |= {
        name: shape.max_positions for name in ("model_max_length", "tokenizer_model_max_length") if name in values
    }
    if "head_dim" in values or shape.heads.query * shape.heads.channels != shape.hidden_size:
        changed["head_dim"] = shape.heads.channels
    for name in ("rope_scaling", "rope_parameters"):
        scaling = cast(dict[str, Any], values.get(name) or {})
        if "mrope_section" in scaling:
            sections = cast(list[int], scaling["mrope_section"])
            rotated = shape.heads.channels * scaling.get("partial_rotary_factor", 1)
            factor = int(rotated) // (2 * sum(sections))
            changed[name] = scaling | {"mrope_section": [factor * section for section in sections]}
    return changed | (_linear_sizes(shape) if shape.linear else {})


def _linear_sizes(shape: ModelShape) -> dict[str, Any]:
    linear = shape.linear
    assert linear is not None
    interval = shape.num_layers // shape.num_attention_layers
    kinds = ["linear_attention" if number % interval else "full_attention" for number in range(1, shape.num_layers + 1)]
    return {
        "full_attention_interval": interval,
        "layer_types": kinds,
        "linear_num_key_heads": linear.key_heads,
        "linear_num_value_heads": linear.value_heads,
        "linear_key_head_dim": linear.key_channels,
        "linear_value_head_dim": linear.value_channels,
    }


def _with_vision(values: dict[str, Any], shape: ModelShape, vision: VisionShape) -> dict[str, Any]:
    changed = values | {
        "depth": vision.depth,
        "num_heads": vision.width // _CHANNELS_PER_VISION_HEAD[vision.patch_size],
    }
    if "embed_dim" in values:  # Qwen2-VL's hidden_size is the width of the tower's output
        ratio = vision.intermediate_size // vision.width
        return changed | {"embed_dim": vision.width, "mlp_ratio": ratio, "hidden_size": shape.hidden_size}
    changed |= {"hidden_size": vision.width, "intermediate_size": vision.intermediate_size}
    changed["out_hidden_size"] = shape.hidden_size
    if "fullatt_block_indexes" in values:
        period = round(1 / vision.full_share)
        changed["fullatt_block_indexes"] = list(range(period - 1, vision.depth, period))
    if "deepstack_visual_indexes" in values:
        period = vision.depth // vision.levels
        changed["deepstack_visual_indexes"] = [period * level - 1 for level in range(1, vision.levels)]
    return changed


def _siglip_sizes(vision: VisionShape) -> dict[str, Any]:
    return {
        "hidden_size": vision.width,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.width // 72,
        "patch_size": vision.patch_size,
        "image_size": vision.fixed_size,
    }


def _with_fewer_layers(values: dict[str, Any], num_layers: int) -> dict[str, Any]:
    changed = dict(values)
    for name in ("thinker_config", "text_config", "vision_config"):
        if name in values:
            changed[name] = _with_fewer_layers(values[name], num_layers)
    if "num_hidden_layers" in values:
        changed["num_hidden_layers"] = min(num_layers, values["num_hidden_layers"])
        if "layer_types" in values:
            changed["layer_types"] = values["layer_types"][:num_layers]
    if "depth" in values:
        levels = len(values.get("deepstack_visual_indexes") or ())
        changed["depth"] = depth = min(max(num_layers, levels), values["depth"])
        if levels:
            changed["deepstack_visual_indexes"] = list(range(depth - levels, depth))
        if "fullatt_block_indexes" in values:
            changed["fullatt_block_indexes"] = [depth - 1]
    return changed
