"""The vision of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, with the checkpoint's own processors and tower.

All cut pairs of frames into patches and merge blocks of two by two patches. They differ in the limit on pixels (per
frame, or per video), and Qwen3-VL's tower also returns features of its middle layers (DeepStack, arXiv 2406.04334),
which are stored with the rest: a row is then hidden size × (1 + levels) wide.

The projector is the tower's mergers. They are inside the tower, and Qwen2.5-VL's tower undoes its window order only
after them. So features are the tower's output with its mergers replaced by the identity: the rows are then in the order
of the embeddings, whatever the tower does, and merging them later is a function of each row alone.

Shape legend: F frames, G groups, N embedding rows, D hidden size (times 1 + levels), T embedding rows of a group, C
channels that a merger joins into one row (times 1 + levels).
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.video_processing_utils import BaseVideoProcessor

from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.encoding.frame_encoder import FrameEncoder, FrameLayout, transformer_operations
from mrsp_engine.families.qwen.frame_sizes import QwenFrames, middle_seconds, seconds_per_group

__all__ = [
    "Qwen2VisionEncoder",
    "Qwen3VisionEncoder",
    "Qwen35VisionEncoder",
    "QwenVisionEncoder",
    "ThinkerVisionEncoder",
]


class QwenVisionEncoder(FrameEncoder):
    """Encodes with Qwen2.5-VL's tower.

    Args:
        model: The Hugging Face model, for its public feature methods and its tower.
        processor: The checkpoint's processor.
        family: Name used in the key.
    """

    def __init__(self, model: Any, processor: Any, family: str) -> None:
        self._model = model
        self._tower = self.tower_of(model)
        self._videos: Any = processor.video_processor
        self._images: Any = processor.image_processor
        settings = {"video": self._videos.to_dict(), "image": self._images.to_dict()}
        super().__init__(self._tower, family, settings, projector=("merger.", "deepstack_merger_list."))
        for modality in settings:
            self._frames(modality)  # refuses impossible sizes now, before a video is read

    @staticmethod
    def tower_of(model: Any) -> Any:
        """The vision tower, with its projector."""
        return model.model.visual

    @property
    def merge_size(self) -> int:
        """Patches per side that the tower merges into one embedding."""
        return int(self._videos.merge_size)

    def lay_out(
        self, modality: str, height: int, width: int, seconds: Sequence[float], budget: FrameBudget = UNLIMITED
    ) -> FrameLayout:
        """See `FrameEncoder.lay_out`."""
        frames = self._frames(modality)
        temporal, patch = frames.frames_per_group, frames.patch_size
        height, width = frames.size(height, width, len(seconds), budget)
        grid_thw = (frames.num_groups(len(seconds)), height // patch, width // patch)
        num_patches = grid_thw[1] * grid_thw[2]
        return FrameLayout(
            height=height,
            width=width,
            grid_thw=grid_thw,
            num_tokens=frames.num_tokens(height, width, len(seconds)),
            frames_per_group=temporal if modality == "video" else 1,  # the image processor repeats the frame
            num_groups=grid_thw[0],
            operations_per_group=self._operations(num_patches),
            seconds_per_grid=self._seconds_per_grid(seconds, temporal) if modality == "video" else 1.0,
            grid_seconds=self._grid_seconds(seconds, temporal) if modality == "video" else (),
        )

    def resize(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> NDArray[np.uint8]:
        """See `FrameEncoder.resize`; the size depends on the length of the whole video, so the plan's size is used."""
        processor, resize = (
            (self._videos, BaseVideoProcessor.resize)
            if modality == "video"
            else (self._images, TorchvisionBackend.resize)
        )
        if not processor.do_resize:
            return frames
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        size = SizeDict(height=layout.height, width=layout.width)
        resized: Tensor = resize(processor, pixels, size, resample=processor.resample)
        return cast(NDArray[np.uint8], resized.permute(0, 2, 3, 1).contiguous().numpy())

    def extract(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> Tensor:
        """See `FrameEncoder.extract`. An odd number of frames is completed by repeating the last."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        options: dict[str, Any] = {
            "do_resize": False,
            "input_data_format": "channels_first",
            "return_tensors": "pt",
        }
        if modality == "image":
            inputs = self._images(images=list(pixels), **options)
            values, grids, encode = inputs["pixel_values"], inputs["image_grid_thw"], self._model.get_image_features
        else:
            # The cap is one of resizing, which is done; unset, transformers warns of a default that counts for nothing.
            inputs = self._videos(videos=[pixels], do_sample_frames=False, cap_pixels_per_frame=False, **options)
            values, grids = inputs["pixel_values_videos"], inputs["video_grid_thw"]
            encode = self._model.get_video_features
        with ExitStack() as bypasses:
            for merger in self._mergers:
                bypasses.enter_context(_bypassed(merger, self.merge_size**2))
            features = encode(values.to(self._tower.device), grids.to(self._tower.device))
        rows_NC = torch.cat(self._levels(features), dim=1)
        return rows_NC.unflatten(0, (-1, layout.num_tokens // layout.num_groups))

    def project(self, modality: str, features: Tensor, layout: FrameLayout) -> Tensor:
        """See `FrameEncoder.project`."""
        levels = features.flatten(0, 1).chunk(len(self._mergers), dim=1)
        patches = (level.unflatten(1, (self.merge_size**2, -1)).flatten(0, 1) for level in levels)
        return torch.cat([merger(of_level) for merger, of_level in zip(self._mergers, patches, strict=True)], dim=1)

    @property
    def embedding_width(self) -> int:
        """See `FrameEncoder.embedding_width`."""
        return int(self._tower.config.out_hidden_size) * len(self._mergers)

    @property
    def _mergers(self) -> list[Callable[[Tensor], Tensor]]:
        """The mergers, in the order in which their outputs are concatenated."""
        return [self._tower.merger]

    def _levels(self, features: Any) -> list[Tensor]:
        """The output of each merger, [N, …]."""
        return [torch.cat(list(features.pooler_output))]

    def _operations(self, num_patches: int) -> float:
        config = self._tower.config
        window = (int(config.window_size) // int(config.patch_size)) ** 2
        share = len(config.fullatt_block_indexes) / int(config.depth)  # layers with full attention
        return transformer_operations(
            num_patches,
            width=int(config.hidden_size),
            intermediate_size=int(config.intermediate_size),
            depth=int(config.depth),
            attended_patches=share * num_patches + (1 - share) * min(window, num_patches),
            num_linears=3,
        )

    def _frames(self, modality: str) -> QwenFrames:
        """How the processor sizes frames, or an image."""
        processor = self._videos if modality == "video" else self._images
        is_capped = modality == "video" and getattr(processor, "cap_pixels_per_frame", None)
        return QwenFrames(
            patch_size=int(processor.patch_size),
            merge_size=self.merge_size,
            frames_per_group=int(processor.temporal_patch_size),
            min_pixels=int(processor.size["shortest_edge"]),
            max_pixels=int(processor.size["longest_edge"]),
            is_resized=bool(processor.do_resize),
            capped_tokens=int(processor.max_video_tokens) if is_capped else None,
        )

    def _seconds_per_grid(self, seconds: Sequence[float], temporal_patch_size: int) -> float:
        return seconds_per_group(seconds, temporal_patch_size)

    def _grid_seconds(self, seconds: Sequence[float], temporal_patch_size: int) -> tuple[float, ...]:
        return ()


class ThinkerVisionEncoder(QwenVisionEncoder):
    """Encodes with the tower of Qwen2.5-Omni's thinker, which is Qwen2.5-VL's in another place."""

    @staticmethod
    def tower_of(model: Any) -> Any:
        """See `QwenVisionEncoder.tower_of`."""
        return model.visual


class Qwen2VisionEncoder(QwenVisionEncoder):
    """Encodes with Qwen2-VL's tower, which has no windows and no time."""

    @property
    def embedding_width(self) -> int:
        """See `FrameEncoder.embedding_width`; this tower has another name for its width."""
        return int(self._tower.config.hidden_size)

    def _operations(self, num_patches: int) -> float:
        config = self._tower.config
        return transformer_operations(
            num_patches,
            width=int(config.embed_dim),
            intermediate_size=int(config.embed_dim * config.mlp_ratio),
            depth=int(config.depth),
            attended_patches=num_patches,
        )

    def _seconds_per_grid(self, seconds: Sequence[float], temporal_patch_size: int) -> float:
        return 1.0


class Qwen35VisionEncoder(QwenVisionEncoder):
    """Encodes with Qwen3.5's tower: without windows, sized by the whole video, with a time for every pair of frames."""

    def _operations(self, num_patches: int) -> float:
        config = self._tower.config
        return transformer_operations(
            num_patches,
            width=int(config.hidden_size),
            intermediate_size=int(config.intermediate_size),
            depth=int(config.depth),
            attended_patches=num_patches,
        )

    def _frames(self, modality: str) -> QwenFrames:
        return replace(super()._frames(modality), is_whole_video=modality == "video")

    def _grid_seconds(self, seconds: Sequence[float], temporal_patch_size: int) -> tuple[float, ...]:
        return middle_seconds(seconds, temporal_patch_size)


class Qwen3VisionEncoder(Qwen35VisionEncoder):
    """Encodes with Qwen3-VL's tower, the levels of DeepStack included."""

    @property
    def _mergers(self) -> list[Callable[[Tensor], Tensor]]:
        return [self._tower.merger, *self._tower.deepstack_merger_list]

    def _levels(self, features: Any) -> list[Tensor]:
        return [*super()._levels(features), *(torch.cat(list(level)) for level in features.deepstack_features)]


@contextmanager
def _bypassed(merger: Any, num_joined: int) -> Generator[None]:
    """Within the block, make a merger return its input, the concatenated patches of a row."""
    given: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given.append(inputs[0])
        return (inputs[0][:num_joined],)  # it needs an argument

    def give(*_: Any) -> Tensor:
        return given.pop().unflatten(0, (-1, num_joined)).flatten(1)

    handles = [merger.register_forward_pre_hook(take), merger.register_forward_hook(give)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
