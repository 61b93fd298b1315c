"""The shapes of checkpoints: of published ones by name, of any other supported one from its config.json."""

from pathlib import Path
from typing import Any, cast

from longrl_files.messages import visible
from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.qwen.processor_files import VIDEO_DEFAULTS, read_frames
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER, TOWER_FOLDER, VilaConfig
from mrsp_engine.families.vila.frame_sizes import VilaFrames
from mrsp_engine.planner.published import MODELS
from mrsp_engine.planner.shapes import LinearShape, ModelShape, VisionShape
from mrsp_engine.planner.videos import QwenVideos, VilaVideos, token_counter
from mrsp_engine.rotary import language_section, longest_context

__all__ = ["find_shape", "read_shape"]

_JOINED_PER_SIDE = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Neighbours along an edge that VILA's projectors concatenate; other projectors concatenate none."""

_WRITES_TIMES = ("qwen3_vl", "qwen3_5")
"""Types of models whose videos have a time, as text, before every pair of frames."""
_GATED = ("qwen3_5",)
"""Types of models in which the output of attention has a gate."""


def find_shape(model: str) -> ModelShape:
    """The shape of a checkpoint, given its name or its folder.

    Raises:
        EngineUsageError: It is neither a known name nor a folder with a readable config.json.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return read_shape(folder)
    wanted = folder.name.lower()
    for name, shape in MODELS.items():
        if wanted.removesuffix("-instruct") == name.lower():
            return shape
    raise EngineUsageError(
        f"model {model!r}: neither a folder with a config.json nor one of {', '.join(MODELS)}; set another model"
    )


def read_shape(folder: Path) -> ModelShape:
    """The shape of the checkpoint in a folder, of the Qwen families or VILA.

    Raises:
        EngineUsageError: Its config.json can't be read or is of another family.
    """
    path = folder / "config.json"
    try:
        checkpoint = CheckpointFolder(folder)
        config, language = checkpoint.read("config.json"), checkpoint.find(f"{LANGUAGE_FOLDER}/config.json")
        is_vila = language is not None
        vision = _read_vila_vision(folder) if is_vila else _read_vision(folder, config)
        config = config if language is None else language
        text = cast(dict[str, Any], language_section(config))
        if "num_experts" in text:
            raise EngineUsageError(
                f"{path}: a model of {text['num_experts']} experts, which the planner doesn't support; set a model "
                f"without experts"
            )
        hidden_size, query = int(text["hidden_size"]), int(text["num_attention_heads"])
        return ModelShape(
            name=folder.name,
            hidden_size=hidden_size,
            num_layers=int(text["num_hidden_layers"]),
            heads=AttentionHeads(
                query=query,
                key=int(text["num_key_value_heads"]),
                channels=int(text.get("head_dim") or hidden_size // query),
            ),
            intermediate_size=int(text["intermediate_size"]),
            vocab_size=int(text["vocab_size"]),
            is_tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            max_positions=longest_context(text),
            vision=vision,
            linear=_read_linear(text),
            is_gated=str(config.get("model_type")) in _GATED,
        )
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineUsageError(
            f"{path}: not a config.json the planner can read ({type(error).__name__}: {visible(str(error))}); "
            f"set a Qwen folder or one of {', '.join(MODELS)}"
        ) from None


def _read_linear(text: dict[str, Any]) -> LinearShape | None:
    """The layers of linear attention, with the defaults of transformers' class."""
    kinds: list[str] = text.get("layer_types") or []
    if not kinds and "full_attention_interval" in text:
        interval = int(text["full_attention_interval"])
        numbers = range(1, 1 + int(text["num_hidden_layers"]))
        kinds = ["linear_attention" if number % interval else "full_attention" for number in numbers]
    if "linear_attention" not in kinds:
        return None
    return LinearShape(
        num_layers=kinds.count("linear_attention"),
        key_heads=int(text.get("linear_num_key_heads", 16)),
        value_heads=int(text.get("linear_num_value_heads", 32)),
        key_channels=int(text.get("linear_key_head_dim", 128)),
        value_channels=int(text.get("linear_value_head_dim", 128)),
    )


def _read_vila_vision(folder: Path) -> VisionShape:
    config, tower = VilaConfig.read(folder), CheckpointFolder(folder).read(f"{TOWER_FOLDER}/config.json")
    edge, patch_size = int(tower["image_size"]), int(tower["patch_size"])
    merge_size = _JOINED_PER_SIDE.get(config.projector_type, 1)
    frames = VilaFrames(rows_per_side=-(-(edge // patch_size) // merge_size), syntax=config.video)
    return VisionShape(
        width=int(tower["hidden_size"]),
        intermediate_size=int(tower["intermediate_size"]),
        depth=int(tower["num_hidden_layers"]),
        patch_size=patch_size,
        merge_size=merge_size,
        frames_per_group=1,
        fixed_size=edge,
        extra_tokens=1,
        videos=VilaVideos(frames=frames, edge=edge, count_tokens=token_counter(folder / LANGUAGE_FOLDER)),
    )


def _read_vision(folder: Path, values: dict[str, Any]) -> VisionShape | None:
    model_type, model = str(values.get("model_type")), cast(dict[str, Any], values.get("thinker_config") or values)
    if "vision_config" not in model:
        return None
    config = cast(dict[str, Any], model["vision_config"])
    clocks = {
        "qwen2_5_vl": config.get("tokens_per_second", 4),
        "qwen2_5_omni": model.get("position_id_per_seconds", 25),
    }
    videos = None
    if model_type in VIDEO_DEFAULTS:
        videos = QwenVideos(
            frames=read_frames(folder, model_type),
            writes_times=model_type in _WRITES_TIMES,
            positions_per_second=float(clocks[model_type]) if model_type in clocks else None,
            count_tokens=token_counter(folder),
        )
    window, patch_size, depth = config.get("window_size"), int(config["patch_size"]), int(config["depth"])
    width = int(config.get("embed_dim") or config["hidden_size"])  # Qwen2-VL's hidden_size is the width of its output
    return VisionShape(
        width=width,
        intermediate_size=int(config.get("intermediate_size") or config["mlp_ratio"] * width),
        depth=depth,
        patch_size=patch_size,
        merge_size=int(config["spatial_merge_size"]),
        frames_per_group=int(config["temporal_patch_size"]),
        num_linears=3 if window else 2,
        window_patches=(int(window) // patch_size) ** 2 if window else None,
        full_share=len(config["fullatt_block_indexes"]) / depth if window else 1.0,
        levels=1 + len(config.get("deepstack_visual_indexes") or ()),
        videos=videos,
    )
