"""From frames to embeddings: what is the same for every family that sees.

An encoder's attention never leaves a group of a few frames (a temporal patch), so a video is read, resized and encoded
a stretch of groups at a time with the same result and bounded memory, and any range of groups can be encoded on its
own. Where the embeddings lie is worked out before anything is decoded, and nothing is decoded when the store already
holds them.

Shape legend: F frames, N embedding rows, D hidden size.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrsp_engine.embeddings.key import EmbeddingKey, encoder_fingerprint
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.media import MediaReference
from mrsp_engine.video import Video

__all__ = ["FRAMES_PER_STRETCH", "EncodingPlan", "FrameEncoder", "FrameLayout", "transformer_operations"]

FRAMES_PER_STRETCH = 64
"""Most frames decoded and encoded at a time, unless one group has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLayout:
    """How frames of one size become embedding rows; known without decoding.

    Attributes:
        height: Rows of a frame as the encoder sees it.
        width: Its columns.
        grid_thw: Patches in time, height and width before neighbours are merged.
        num_tokens: Embedding rows of the whole medium.
        frames_per_group: Frames that are encoded together and independently of all others.
        num_groups: Number of such groups; the last may be filled up by repeating its last frame.
        operations_per_group: Floating-point operations that one group costs, roughly; what balancing and planning use.
        seconds_per_grid: See `MediaReference`.
        grid_seconds: See `MediaReference`.
    """

    height: int
    width: int
    grid_thw: tuple[int, int, int]
    num_tokens: int
    frames_per_group: int
    num_groups: int
    operations_per_group: float
    seconds_per_grid: float = 1.0
    grid_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingPlan:
    """What is to be encoded, under which key, and what it will be: enough for any rank to do any part of it."""

    modality: str
    frame_indices: tuple[int, ...]
    layout: FrameLayout
    key: EmbeddingKey

    @property
    def rows_per_group(self) -> int:
        """Embedding rows of one group."""
        return self.layout.num_tokens // self.layout.num_groups

    @property
    def reference(self) -> MediaReference:
        """The reference to the whole."""
        return MediaReference(
            key=self.key.digest,
            grid_thw=self.layout.grid_thw,
            seconds_per_grid=self.layout.seconds_per_grid,
            num_tokens=self.layout.num_tokens,
            modality=self.modality,
            grid_seconds=self.layout.grid_seconds,
        )


class FrameEncoder(ABC):
    """Encodes videos and images with one checkpoint's processor, vision tower and projector.

    Args:
        parts: Everything with weights that shapes an embedding; its fingerprint is part of every key.
        family: Name that goes into the key.
        settings: The processor's settings, by modality; a modality without any isn't supported.
    """

    def __init__(self, parts: nn.Module, family: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self.parts = parts
        self._family = family
        self._settings_digests = {
            modality: hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
            for modality, values in settings.items()
        }
        self._frozen_fingerprint: str | None = None

    @abstractmethod
    def lay_out(self, modality: str, height: int, width: int, seconds: Sequence[float]) -> FrameLayout:
        """Foresee the embedding of frames of one size at the given times.

        Raises:
            EngineUsageError: Frames like these can't be encoded.
        """

    @abstractmethod
    def encode(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> Tensor:
        """Encode whole groups of frames, uint8 [F, H, W, 3], to rows [N, D], with gradients if they are enabled."""

    def plan(self, video: Video, frame_indices: Sequence[int], *, modality: str = "video") -> EncodingPlan:
        """Plan the encoding of some frames of a video without reading any.

        Raises:
            EngineUsageError: The frames don't exist or can't be encoded.
        """
        indices = tuple(int(index) for index in frame_indices)
        if not indices or min(indices) < 0 or max(indices) >= video.frame_count:
            raise EngineUsageError(
                f"frame indices {indices[:4]}…: expected at least one, each from 0 to {video.frame_count - 1}; "
                "change the number of frames"
            )
        seconds: list[float] = np.asarray(video.timestamps, dtype=np.float64)[list(indices)].tolist()
        layout = self.lay_out(modality, video.height, video.width, seconds)
        key = EmbeddingKey(
            content_digest=video.content_digest,
            frame_indices=indices,
            timestamps=tuple(round(second * 1e6) for second in seconds),
            height=layout.height,
            width=layout.width,
            processor_digest=self._settings_digests[modality],
            encoder_fingerprint=self._fingerprint(),
            dtype=str(next(self.parts.parameters()).dtype).removeprefix("torch."),
            family=self._family if modality == "video" else f"{self._family} {modality}",
        )
        return EncodingPlan(modality=modality, frame_indices=indices, layout=layout, key=key)

    def plan_image(self, image: Video) -> EncodingPlan:
        """Plan the encoding of an image, a video of one frame.

        Raises:
            EngineUsageError: The model takes no images, or it has more frames than one.
        """
        if "image" not in self._settings_digests:
            raise EngineUsageError(f"image for a model of family {self._family} that takes none; ask without images")
        if image.frame_count != 1:
            raise EngineUsageError(f"image with {image.frame_count} frames: expected 1; encode it as a video")
        return self.plan(image, [0], modality="image")

    def encode_groups(
        self, video: Video, plan: EncodingPlan, start: int = 0, end: int | None = None
    ) -> Iterator[Tensor]:
        """Read and encode groups `start` to `end` (exclusive; all unless given) of a plan, a stretch at a time.

        Yields:
            The rows of a stretch, [n, D], on the CPU.

        Raises:
            EngineError: The encoder made another number of rows than was foreseen.
        """
        layout = plan.layout
        end = layout.num_groups if end is None else end
        groups_per_stretch = max(1, FRAMES_PER_STRETCH // layout.frames_per_group)
        for first in range(start, end, groups_per_stretch):
            last = min(first + groups_per_stretch, end)
            chosen = plan.frame_indices[first * layout.frames_per_group : last * layout.frames_per_group]
            rows = self.encode(plan.modality, np.ascontiguousarray(video.read(chosen)), layout)
            if rows.shape[0] != (last - first) * plan.rows_per_group:
                raise EngineError(
                    f"{plan.modality} {video.content_digest[:12]}: the encoder made {rows.shape[0]} embeddings of "
                    f"{last - first} groups, expected {plan.rows_per_group} each; check the checkpoint's processor"
                )
            yield rows.cpu()

    def refer(self, video: Video, frame_indices: Sequence[int], store: EmbeddingStore) -> MediaReference:
        """Refer to an embedding of the given frames, making it if the store lacks it."""
        return self._refer(video, self.plan(video, frame_indices), store)

    def refer_image(self, image: Video, store: EmbeddingStore) -> MediaReference:
        """Refer to an embedding of an image, making it if the store lacks it."""
        return self._refer(image, self.plan_image(image), store)

    def _refer(self, video: Video, plan: EncodingPlan, store: EmbeddingStore) -> MediaReference:
        if not store.contains(plan.key):
            with torch.no_grad():
                store.put_chunks(plan.key, plan.layout.num_tokens, lambda: self.encode_groups(video, plan))
        return plan.reference

    def _fingerprint(self) -> str:
        """Fingerprint of the encoder as it is now; remembered only while nothing may train it."""
        if any(parameter.requires_grad for parameter in self.parts.parameters()):
            self._frozen_fingerprint = None
            return encoder_fingerprint(self.parts)
        if self._frozen_fingerprint is None:
            self._frozen_fingerprint = encoder_fingerprint(self.parts)
        return self._frozen_fingerprint


def transformer_operations(
    num_patches: int, *, width: int, intermediate_size: int, depth: int, attended_patches: float, num_linears: int = 2
) -> float:
    """Floating-point operations of one pass of a vision transformer over a run of patches.

    Two per weight and patch (four projections of attention, `num_linears` of the feed-forward layer), and four per
    channel and pair of patches that attend to each other.
    """
    weights = 4 * width * width + num_linears * width * intermediate_size
    return float(depth * num_patches * (2 * weights + 4 * width * attended_patches))
