"""The video settings in the processor files of a Qwen-VL checkpoint: reads JSON, without torch.

Files are looked for in transformers' order: a nested `processor_config.json`, `video_preprocessor_config.json`, and
`preprocessor_config.json`, the only one in Qwen2.5-VL's published checkpoints. Omitted settings have the defaults of
transformers' class.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from longrl_files.messages import visible
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.qwen.frame_sizes import QwenFrames

__all__ = ["VIDEO_DEFAULTS", "read_frames", "read_video_processor"]

_SHARED: Mapping[str, Any] = {
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_frames": 4,
    "max_frames": 768,
    "do_resize": True,
    "cap_pixels_per_frame": None,
}
_BY_FRAME: Mapping[str, Any] = {
    **_SHARED,
    "patch_size": 14,
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "max_video_tokens": 128000,
}
_BY_VIDEO: Mapping[str, Any] = {
    **_SHARED,
    "patch_size": 16,
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
    "max_video_tokens": 768,
    "fps": 2,
}
VIDEO_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": _BY_FRAME,
    "qwen2_5_omni": _BY_FRAME,
    "qwen2_5_vl": _BY_FRAME,
    "qwen3_5": _BY_VIDEO,
    "qwen3_5_moe": _BY_VIDEO,
    "qwen3_vl": _BY_VIDEO,
    "qwen3_vl_moe": _BY_VIDEO,
}
"""Settings of transformers' video processor, by model type."""

_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")


def read_video_processor(folder: Path, model_type: str) -> dict[str, Any]:
    """The settings of the video processor that transformers would load.

    Raises:
        EngineUsageError: There is no such file, or it can't be read.
    """
    checkpoint = CheckpointFolder(folder)
    nested = (checkpoint.find("processor_config.json") or {}).get("video_processor")
    found = nested or next((values for name in _FILES if (values := checkpoint.find(name))), None)
    if not isinstance(found, dict):
        raise EngineUsageError(f"{folder}: has no {' or '.join(_FILES)}; set the model folder")
    named = {name: value for name, value in cast(dict[str, Any], found).items() if value is not None}
    values = {**VIDEO_DEFAULTS[model_type], **named}
    if not isinstance(values["size"], dict):
        raise EngineUsageError(
            f"{folder}: the video processor's size={visible(repr(values['size']), 60)}: expected an object; "
            "set the model folder"
        )
    size = dict(cast(dict[str, Any], values["size"]))
    if VIDEO_DEFAULTS[model_type] is _BY_FRAME:  # an older format of the size, which applies to these only
        for edge, name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
            size[edge] = values.get(name, size.get(edge))
    return values | {"size": size}


def read_frames(folder: Path, model_type: str) -> QwenFrames:
    """How the checkpoint in a folder sizes the frames of a video.

    Raises:
        EngineUsageError: Its processor files can't be read, or name no sizes.
    """
    values = read_video_processor(folder, model_type)
    try:
        return QwenFrames(
            patch_size=int(values["patch_size"]),
            merge_size=int(values["merge_size"]),
            frames_per_group=int(values["temporal_patch_size"]),
            min_pixels=int(values["size"]["shortest_edge"]),
            max_pixels=int(values["size"]["longest_edge"]),
            is_whole_video=VIDEO_DEFAULTS[model_type] is _BY_VIDEO,
            is_resized=bool(values["do_resize"]),
            capped_tokens=int(values["max_video_tokens"]) if values["cap_pixels_per_frame"] else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineUsageError(
            f"{folder}: the video processor's settings name no usable sizes ({type(error).__name__}: "
            f"{visible(str(error))}); set the model folder"
        ) from None
