"""From frames to embeddings: what all families with vision share.

An encoder's attention never leaves a group of a few frames (a temporal patch), so a video is read, resized and encoded
a few groups at a time with the same result and bounded memory, and any range of groups can be encoded separately. The
key of the embeddings is computed before anything is decoded, and nothing is decoded when the store already holds them.

Encoding has three stages: frames are resized, the tower turns them into features, the projector turns those into
embeddings. The store keeps the result of the last stage unless `FrameEncoder.content` says otherwise: features where
the projector is trained, frames where the tower is trained or where they are smaller.

Shape legend: F frames, G groups, N embedding rows, D hidden size; H, W rows and columns of a resized frame; T and C
rows and columns of a group's features.
"""

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrsp_engine.embeddings.key import EmbeddingKey, StoredContent, encoder_fingerprint
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import PIXELS_PER_STRETCH, UNLIMITED, FrameBudget
from mrsp_engine.encoding.plan import EncodingPlan, FrameLayout
from mrsp_engine.encoding.video import Video
from mrsp_engine.errors import EngineError, EngineUsageError, UnfitMediumError

__all__ = [
    "ContentChoice",
    "EncodingPlan",
    "FrameEncoder",
    "FrameLayout",
    "transformer_operations",
]

ContentChoice = StoredContent | Literal["smaller"]
"""What the store keeps for a medium; `"smaller"` is embeddings or frames, whichever take fewer bytes."""

FRAMES_PER_STRETCH = 64
"""Maximum number of frames decoded and encoded at a time, unless one group has more."""


class FrameEncoder(ABC):
    """Encodes videos and images with one checkpoint's processor, vision tower and projector.

    Args:
        parts: All modules whose weights affect an embedding; their fingerprint is part of every key.
        family: Name used in the key.
        settings: The processor's settings, by modality; a modality without settings isn't supported.
        projector: Prefixes of the projector's weight names in `parts`; all other weights belong to the tower.

    Attributes:
        has_one_size: Whether frames of every size are resized to one size, so that a limit on pixels has no effect.
        content: What the store keeps for media that are planned from now on.
        planned_fingerprint: Fingerprint in the names of planned embeddings; by default that of the current weights.
        in_turn: Held while tower or projector run: a family may change its modules for a pass, so one thread at a time.
    """

    has_one_size: ClassVar[bool] = False

    def __init__(
        self,
        parts: nn.Module,
        family: str,
        settings: Mapping[str, Mapping[str, Any]],
        *,
        projector: tuple[str, ...],
    ) -> None:
        self.parts = parts
        self.content: ContentChoice = "embeddings"
        self.in_turn = threading.RLock()
        self._counted = threading.local()
        self._family = family
        self._projector = projector
        self._settings_digests = {
            modality: hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
            for modality, values in settings.items()
        }
        self._frozen_fingerprints: dict[bool, str] = {}
        self.planned_fingerprint: str | None = None

    @abstractmethod
    def lay_out(
        self, modality: str, height: int, width: int, seconds: Sequence[float], budget: FrameBudget = UNLIMITED
    ) -> FrameLayout:
        """Compute the layout of the embedding of frames of one size at the given times, within a budget.

        Raises:
            UnfitMediumError: Such frames can't be encoded, or not within the budget.
        """

    @abstractmethod
    def resize(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> NDArray[np.uint8]:
        """Resize frames [F, …] to the size the tower expects, uint8 [F, H, W, 3]."""

    @abstractmethod
    def extract(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> Tensor:
        """The tower's features of whole groups of resized frames, before the projector: [G, T, C]."""

    @abstractmethod
    def project(self, modality: str, features: Tensor, layout: FrameLayout) -> Tensor:
        """Project the features of some groups: [G, T, C] to rows [N, D]."""

    @property
    @abstractmethod
    def embedding_width(self) -> int:
        """Width D of an embedding."""

    def encode(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> Tensor:
        """Encode whole groups of resized frames, uint8 [F, H, W, 3], to rows [N, D], with gradients where enabled."""
        with self.in_turn:
            return self.project(modality, self.extract(modality, frames, layout), layout)

    @property
    def has_projector(self) -> bool:
        """Whether the projector is separate from the tower."""
        return bool(self._projector)

    @property
    def frames_encoded(self) -> int:
        """Frames that went through the tower in this thread, without recomputation in the backward pass."""
        return getattr(self._counted, "num_frames", 0)

    def count_frames(self, num_frames: int) -> None:
        """Count frames that go through the tower."""
        self._counted.num_frames = self.frames_encoded + num_frames

    def set_trainable(self, *, tower: bool, projector: bool) -> None:
        """Choose which parts are trained."""
        self._frozen_fingerprints.clear()
        for name, parameter in self.parts.named_parameters():
            parameter.requires_grad_(projector if name.startswith(self._projector) else tower)

    def plan(
        self,
        video: Video,
        frame_indices: Sequence[int],
        *,
        modality: str = "video",
        budget: FrameBudget = UNLIMITED,
    ) -> EncodingPlan:
        """Plan the encoding of some frames of a video, within a budget, without reading any.

        Raises:
            UnfitMediumError: The frames can't be encoded, or not within the budget.
            EngineUsageError: The frames don't exist.
        """
        indices = tuple(int(index) for index in frame_indices)
        if not indices or min(indices) < 0 or max(indices) >= video.frame_count:
            raise EngineUsageError(
                f"frame indices {indices[:4]}…: expected at least one, each from 0 to {video.frame_count - 1}; "
                "change the number of frames"
            )
        seconds: list[float] = np.asarray(video.timestamps, dtype=np.float64)[list(indices)].tolist()
        layout = self.lay_out(modality, video.height, video.width, seconds, budget)
        if layout.frames_per_group * layout.height * layout.width > PIXELS_PER_STRETCH:
            raise UnfitMediumError(
                f"frames of {layout.width} × {layout.height} pixels, {layout.frames_per_group} together: expected "
                f"{PIXELS_PER_STRETCH:,} pixels at most; correct the sizes in the checkpoint's processor"
            )
        embedding_key = EmbeddingKey(
            content_digest=video.content_digest,
            frame_indices=indices,
            timestamps=tuple(round(second * 1e6) for second in seconds),
            height=layout.height,
            width=layout.width,
            processor_digest=self._settings_digests[modality],
            encoder_fingerprint=self.planned_fingerprint or self.fingerprint(),
            dtype=str(next(self.parts.parameters()).dtype).removeprefix("torch."),
            family=self._family if modality == "video" else f"{self._family} {modality}",
        )
        return EncodingPlan(
            modality=modality,
            frame_indices=indices,
            layout=layout,
            embedding_key=embedding_key,
            key=self._entry_key(embedding_key, layout),
        )

    def plan_image(self, image: Video) -> EncodingPlan:
        """Plan the encoding of an image, a video of one frame.

        Raises:
            UnfitMediumError: The model accepts no images.
            EngineUsageError: It has more than one frame.
        """
        if "image" not in self._settings_digests:
            raise UnfitMediumError(f"image for a model of family {self._family} that accepts none; ask without images")
        if image.frame_count != 1:
            raise EngineUsageError(f"image with {image.frame_count} frames: expected 1; encode it as a video")
        return self.plan(image, [0], modality="image")

    def encode_groups(
        self, video: Video, plan: EncodingPlan, start: int = 0, end: int | None = None
    ) -> Iterator[Tensor]:
        """Read groups `start` to `end` (exclusive; all by default) of a plan and compute rows of the store's entry.

        Yields:
            The rows of a few groups, on the CPU: [N, D] of embeddings, [G, T, C] of features or uint8 [G, F, H, W, 3]
            of frames.

        Raises:
            EngineError: The encoder returned an unexpected number of rows.
        """
        layout = plan.layout
        for first, last in self.stretches(layout, start, layout.num_groups if end is None else end):
            frames = self.read_frames(video, plan, first, last)
            if plan.key.content == "frames":
                yield self._grouped(frames, layout)
                continue
            self.count_frames(len(frames))
            make = self.extract if plan.key.content == "features" else self.encode
            with self.in_turn:
                rows = make(plan.modality, frames, layout)
            if rows.shape[0] != (last - first) * plan.rows_per_group:
                raise EngineError(
                    f"{plan.modality} {video.content_digest[:12]}: the encoder made {rows.shape[0]} embeddings of "
                    f"{last - first} groups, expected {plan.rows_per_group} each; check the checkpoint's processor"
                )
            yield rows.cpu()

    def read_frames(self, video: Video, plan: EncodingPlan, start: int, end: int) -> NDArray[np.uint8]:
        """Decode and resize the frames of some groups."""
        per_group = plan.layout.frames_per_group
        frames = np.ascontiguousarray(video.read(plan.frame_indices[start * per_group : end * per_group]))
        return self.resize(plan.modality, frames, plan.layout)

    @staticmethod
    def stretches(layout: FrameLayout, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut groups `start` to `end` into runs that are encoded together."""
        most_frames = min(FRAMES_PER_STRETCH, PIXELS_PER_STRETCH // (layout.height * layout.width))
        step = max(1, most_frames // layout.frames_per_group)
        return ((first, min(first + step, end)) for first in range(start, end, step))

    def refer(
        self, video: Video, frame_indices: Sequence[int], store: EmbeddingStore, budget: FrameBudget = UNLIMITED
    ) -> MediaReference:
        """Return a reference to the embedding of the given frames, encoding them if the store lacks it."""
        return self._refer(video, self.plan(video, frame_indices, budget=budget), store)

    def refer_image(self, image: Video, store: EmbeddingStore) -> MediaReference:
        """Return a reference to the embedding of an image, encoding it if the store lacks it."""
        return self._refer(image, self.plan_image(image), store)

    def fingerprint(self, *, tower_only: bool = False) -> str:
        """Fingerprint of the weights as they are now; cached only while they aren't trained."""
        prefixes = self._projector if tower_only else ()
        if any(p.requires_grad for name, p in self.parts.named_parameters() if not name.startswith(prefixes)):
            self._frozen_fingerprints.clear()
            return encoder_fingerprint(self.parts, without=prefixes)
        if tower_only not in self._frozen_fingerprints:
            self._frozen_fingerprints[tower_only] = encoder_fingerprint(self.parts, without=prefixes)
        return self._frozen_fingerprints[tower_only]

    def _entry_key(self, key: EmbeddingKey, layout: FrameLayout) -> EmbeddingKey:
        """The key of what the store keeps, which doesn't depend on the weights that are applied to it afterwards."""
        content = self.content
        if content == "smaller":
            itemsize = next(self.parts.parameters()).dtype.itemsize
            frame_bytes = layout.num_groups * layout.frames_per_group * layout.height * layout.width * 3
            content = "frames" if frame_bytes < layout.num_tokens * self.embedding_width * itemsize else "embeddings"
        if content == "features":
            return replace(key, content=content, encoder_fingerprint=self.fingerprint(tower_only=True))
        if content == "frames":
            return replace(key, content=content, encoder_fingerprint="", dtype="uint8")
        return key

    def _refer(self, video: Video, plan: EncodingPlan, store: EmbeddingStore) -> MediaReference:
        if not store.contains(plan.key):
            with torch.no_grad():
                store.put_chunks(plan.key, plan.num_rows, lambda: self.encode_groups(video, plan))
        return plan.reference

    @staticmethod
    def _grouped(frames: NDArray[np.uint8], layout: FrameLayout) -> Tensor:
        """Frames [F, H, W, 3] by groups, [G, F, H, W, 3]; an incomplete last group repeats its last frame."""
        lacking = -len(frames) % layout.frames_per_group
        filled = np.concatenate([frames, frames[-1:].repeat(lacking, axis=0)]) if lacking else frames
        return torch.from_numpy(filled).unflatten(0, (-1, layout.frames_per_group))


def transformer_operations(
    num_patches: int, *, width: int, intermediate_size: int, depth: int, attended_patches: float, num_linears: int = 2
) -> float:
    """Floating-point operations of one pass of a vision transformer over a run of patches.

    Two per weight and patch (four projections of attention, `num_linears` of the feed-forward layer), plus four per
    channel and pair of patches that attend to each other.
    """
    weights = 4 * width * width + num_linears * width * intermediate_size
    return float(depth * num_patches * (2 * weights + 4 * width * attended_patches))
