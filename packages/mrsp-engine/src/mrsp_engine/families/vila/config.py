"""The media settings in the root `config.json` of a VILA checkpoint, read strictly.

Only data is read: class names in the file (`_target_`, `auto_map`) choose between the engine's own code or are refused,
they never cause an import, and paths in it (`resume_path`) are not followed. The rules are those of the published
layout; what can't be computed exactly as published (images in several scales, tiles) is refused instead of being
approximated.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder

__all__ = ["LANGUAGE_FOLDER", "PROJECTOR_FOLDER", "TOWER_FOLDER", "MediaSyntax", "VilaConfig"]

LANGUAGE_FOLDER = "llm"
TOWER_FOLDER = "vision_tower"
PROJECTOR_FOLDER = "mm_projector"

_BASIC_ENCODERS = {"BasicImageEncoder", "BasicVideoEncoder"}
_POOLING_ENCODER = "TSPVideoEncoder"
_DYNAMIC_POOLING = ((256, 4), (512, 8), (1024, 16))
_MOST_DYNAMIC_POOLING = 32
MOST_SCALES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSyntax:
    """How an encoded medium appears in the prompt.

    Attributes:
        start: Text before every frame, or "".
        end: Text after every frame, or "".
        pool: Numbers of frames, rows and columns that are averaged into one; None for frames if it depends on the
            length of the video.
    """

    start: str
    end: str
    pool: tuple[int | None, int, int]

    def frames_per_pool(self, num_frames: int) -> int:
        """Number of frames averaged into one, in a video of `num_frames` (LongVILA-R1's rule where it isn't fixed)."""
        if self.pool[0] is not None:
            return self.pool[0]
        return next((factor for most, factor in _DYNAMIC_POOLING if num_frames <= most), _MOST_DYNAMIC_POOLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class VilaConfig:
    """The parts of a checkpoint's configuration that affect embeddings and prompts."""

    projector_type: str
    is_by_columns: bool
    """Whether the projector writes its rows column by column, like the first release, whose configurations name no
    encoders yet.
    """
    select_layer: int
    num_scales: int
    """How often the channels of a frame's patches are repeated. Models that see images in several scales (`dynamic_s2`)
    see a video's frames only in the smallest, which is repeated for the others.
    """
    video: MediaSyntax
    image: MediaSyntax | None

    @classmethod
    def read(cls, folder: Path) -> "VilaConfig":
        """Read the root and the projector's `config.json`.

        Raises:
            EngineUsageError: Files are missing, or require something that the engine doesn't support.
        """
        path, checkpoint = folder / "config.json", CheckpointFolder(folder)
        for part in (LANGUAGE_FOLDER, TOWER_FOLDER, PROJECTOR_FOLDER):
            checkpoint.part(part)
        values, projector = checkpoint.read("config.json"), checkpoint.read(f"{PROJECTOR_FOLDER}/config.json")
        is_scaled = bool(values.get("dynamic_s2"))
        if values.get("s2") and not is_scaled:
            raise EngineUsageError(
                f"{path}: s2={values['s2']}: frames in several scales are not supported; "
                "set a model folder whose vision tower sees one scale of a frame"
            )
        projector_type = projector.get("mm_projector_type", values.get("mm_projector_type"))
        select_layer = values.get("mm_vision_select_layer", -2)
        if not isinstance(projector_type, str) or type(select_layer) is not int:
            raise EngineUsageError(
                f"{folder}: mm_projector_type={projector_type!r}, mm_vision_select_layer={select_layer!r}: expected a "
                "name and a number; set another model folder"
            )
        # Other values mean that images are cut into tiles.
        is_resized = values.get("image_aspect_ratio", "resize") == "resize" and not is_scaled
        return cls(
            projector_type=projector_type,
            is_by_columns=projector_type == "mlp_downsample" and not values.keys() & {"image_encoder", "video_encoder"},
            select_layer=select_layer,
            num_scales=_count_scales(path, values.get("s2_scales")) if is_scaled else 1,
            video=_read_syntax(path, values, "video_encoder"),
            image=_read_syntax(path, values, "image_encoder") if is_resized else None,
        )


def _count_scales(path: Path, scales: Any) -> int:
    """Count what is written as "448,896,1344" or as a list."""
    listed: Any = scales.split(",") if isinstance(scales, str) else scales
    sides = cast(list[Any], listed) if isinstance(listed, list) else []
    if not 1 <= len(sides) <= MOST_SCALES or not all(str(side).strip().isdecimal() for side in sides):
        raise EngineUsageError(
            f"{path}: s2_scales={visible(repr(scales), 60)}: expected side lengths of images, such as '448,896,1344'; "
            "set another model folder"
        )
    return len(sides)


def _read_syntax(path: Path, values: Mapping[str, Any], key: str) -> MediaSyntax:
    encoder = _read_encoder(path, key, values.get(key) or {})
    name = str(encoder.get("_target_", "BasicVideoEncoder")).rpartition(".")[2]
    start, end = encoder.get("start_tokens") or "", encoder.get("end_tokens", "\n") or ""
    is_plain = isinstance(start, str) and isinstance(end, str) and not encoder.get("sep_tokens")
    pool: tuple[int | None, int, int] = (1, 1, 1)
    if name == _POOLING_ENCODER and is_plain:
        sizes: Any = encoder.get("pool_sizes")
        is_plain = isinstance(sizes, list) and len(cast(list[Any], sizes)) == 1 and _is_pool(sizes[0])
        pool = cast(tuple[int, int, int], tuple(sizes[0])) if is_plain else pool
    elif name not in _BASIC_ENCODERS:
        is_plain = False
    elif key == "video_encoder" and values.get("use_tsp_encoder"):
        pool = (None, 1, 1)
    if not is_plain:
        raise EngineUsageError(
            f"{path}: {key}={visible(json.dumps(encoder))}: expected frames one after another, or "
            f"{_POOLING_ENCODER} with one pool size; set another model folder"
        )
    return MediaSyntax(start=start, end=end, pool=pool)


def _read_encoder(path: Path, key: str, written: Any) -> dict[str, Any]:
    """Return an encoder as an object, given an object, JSON text (the default of VILA's own class), or a class name."""
    encoder: Any = written
    if isinstance(written, str):
        is_json = written.lstrip().startswith("{")
        try:
            encoder = parse_json(written) if is_json else {"_target_": written}
        except UnfitJsonError:
            encoder = None
    if not isinstance(encoder, dict):
        raise EngineUsageError(
            f"{path}: {key}={visible(json.dumps(written))}: expected an object, directly or as JSON text; "
            "set another model folder"
        )
    return cast(dict[str, Any], encoder)


def _is_pool(size: Any) -> bool:
    values = cast(list[Any], size) if isinstance(size, list) else []
    return len(values) == 3 and all(type(value) is int and 0 < value < 2**16 for value in values)
