"""How many frames of a video a checkpoint's own files specify: reads JSON, without torch."""

from pathlib import Path
from typing import Any

from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.qwen.processor_files import VIDEO_DEFAULTS, read_video_processor

__all__ = ["read_published_frames"]

COUNTS = ("num_frames", "fps", "min_frames", "max_frames")


def read_published_frames(folder: Path) -> dict[str, Any]:
    """The settings among `num_frames`, `fps`, `min_frames` and `max_frames` that the files specify; possibly none.

    Qwen-VL checkpoints specify them for their video processor; what a file omits has the default of the series. VILA's
    specify the maximum number of frames of a video and sometimes a rate.

    Raises:
        EngineUsageError: The folder's config.json can't be read.
    """
    config = CheckpointFolder(folder).read("config.json")
    model_type = str(config.get("model_type"))
    if model_type in VIDEO_DEFAULTS:
        values = read_video_processor(folder, model_type)
        named = {name: values[name] for name in COUNTS if values.get(name)}
        return {name: named[name] for name in ("num_frames",)} if "num_frames" in named else named
    most, rate = config.get("num_video_frames"), config.get("fps")
    if rate:
        return {"fps": float(rate)} | ({"max_frames": int(most)} if most else {})
    return {"num_frames": int(most)} if most else {}
