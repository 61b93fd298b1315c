"""From frames to embeddings, as the checkpoint's own video processor and vision tower make them.

The tower's attention never leaves a temporal patch (two frames), so a video is read, resized and encoded a stretch at
a time with the same result and bounded memory. Nothing is decoded when the store already holds the embedding.

Shape legend: F frames, N embedding rows, D hidden size.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from mrsp_engine.embeddings.key import EmbeddingKey, encoder_fingerprint
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.media import MediaReference
from mrsp_engine.video import Video

FRAMES_PER_STRETCH = 64
"""Frames decoded and encoded at a time; a multiple of every temporal patch size in use."""

TOKEN_SHARE_FOR_VIDEO = 0.9
"""Part of the processor's `max_video_tokens` that its per-frame cap distributes over the frames."""


class VideoEncoder:
    """Encodes videos with one checkpoint's processor and vision tower.

    Args:
        model: The Hugging Face model, for its public `get_video_features` and its tower.
        video_processor: The checkpoint's video processor.
        family: Name that goes into the key.
    """

    def __init__(self, model: Any, video_processor: Any, family: str) -> None:
        self._model = model
        self._tower = model.model.visual
        self._processor = video_processor
        self._family = family
        settings = json.dumps(video_processor.to_dict(), sort_keys=True, default=str)
        self._processor_digest = hashlib.sha256(settings.encode()).hexdigest()
        self._frozen_fingerprint: str | None = None

    @property
    def merge_size(self) -> int:
        """Patches per side that the tower merges into one embedding."""
        return int(self._processor.merge_size)

    def refer(self, video: Video, frame_indices: Sequence[int], store: EmbeddingStore) -> MediaReference:
        """Refer to an embedding of the given frames, making it if the store lacks it."""
        indices = tuple(int(index) for index in frame_indices)
        if not indices or min(indices) < 0 or max(indices) >= video.frame_count:
            raise EngineUsageError(
                f"frame indices {indices[:4]}…: expected at least one, each from 0 to {video.frame_count - 1}; "
                "change the number of frames"
            )
        timestamps = np.asarray(video.timestamps, dtype=np.float64)[list(indices)]
        height, width = self._resized(video.height, video.width, len(indices))
        key = EmbeddingKey(
            content_digest=video.content_digest,
            frame_indices=indices,
            timestamps=tuple(round(float(seconds) * 1e6) for seconds in timestamps),
            height=height,
            width=width,
            processor_digest=self._processor_digest,
            encoder_fingerprint=self._fingerprint(),
            dtype=str(self._tower.dtype).removeprefix("torch."),
            family=self._family,
        )
        temporal, patch = int(self._processor.temporal_patch_size), int(self._processor.patch_size)
        grid_thw = (-(-len(indices) // temporal), height // patch, width // patch)
        reference = MediaReference(
            key=key.digest,
            grid_thw=grid_thw,
            seconds_per_grid=_seconds_per_grid(timestamps.tolist(), temporal),
            num_tokens=grid_thw[0] * grid_thw[1] * grid_thw[2] // self.merge_size**2,
        )
        if not store.contains(key):
            store.put(key, self._encode(video, indices, reference))
        return reference

    @torch.no_grad()
    def _encode(self, video: Video, indices: tuple[int, ...], reference: MediaReference) -> Tensor:
        parts: list[Tensor] = []
        for start in range(0, len(indices), FRAMES_PER_STRETCH):
            frames = video.read(indices[start : start + FRAMES_PER_STRETCH])  # [F, H, W, 3]
            # The cap depends on the length of the whole video, so it is worked out here and not per stretch.
            inputs = self._processor(
                videos=[torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)],
                size={
                    "shortest_edge": int(self._processor.size["shortest_edge"]),
                    "longest_edge": self._largest_frame(len(indices)),
                },
                cap_pixels_per_frame=False,
                do_sample_frames=False,
                input_data_format="channels_first",
                return_tensors="pt",
            )
            features = self._model.get_video_features(
                inputs["pixel_values_videos"].to(self._tower.device),
                inputs["video_grid_thw"].to(self._tower.device),
            )
            parts += [part.cpu() for part in features.pooler_output]
        embedding = torch.cat(parts)  # [N, D]
        if embedding.shape[0] != reference.num_tokens:
            raise EngineError(
                f"video {video.content_digest[:12]}: the encoder made {embedding.shape[0]} embeddings, the grid "
                f"{reference.grid_thw} has {reference.num_tokens}; check the checkpoint's processor settings"
            )
        return embedding

    def _resized(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """Size of a frame as the tower sees it."""
        factor = int(self._processor.patch_size) * self.merge_size
        if not self._processor.do_resize:
            if height % factor or width % factor:
                raise EngineUsageError(
                    f"frames of {height}×{width}: the checkpoint's processor doesn't resize and needs multiples of "
                    f"{factor}; set do_resize in its processor_config.json"
                )
            return height, width
        try:
            return smart_resize(
                height,
                width,
                factor=factor,
                min_pixels=int(self._processor.size["shortest_edge"]),
                max_pixels=self._largest_frame(num_frames),
            )
        except ValueError as error:
            raise EngineUsageError(f"frames of {height}×{width} can't be resized: {error}") from error

    def _largest_frame(self, num_frames: int) -> int:
        """Most pixels a frame may keep, by the processor's settings, in a video of `num_frames`."""
        processor = self._processor
        largest = int(processor.size["longest_edge"])
        if not getattr(processor, "cap_pixels_per_frame", None):
            return largest
        factor = int(processor.patch_size) * self.merge_size
        all_pixels = int(processor.max_video_tokens * factor * factor * TOKEN_SHARE_FOR_VIDEO)
        share = all_pixels * int(processor.temporal_patch_size) // num_frames
        return max(min(largest, share), int(processor.size["shortest_edge"] * 1.05))

    def _fingerprint(self) -> str:
        """Fingerprint of the tower as it is now; remembered only while nothing may train it."""
        if any(parameter.requires_grad for parameter in self._tower.parameters()):
            self._frozen_fingerprint = None
            return encoder_fingerprint(self._tower)
        if self._frozen_fingerprint is None:
            self._frozen_fingerprint = encoder_fingerprint(self._tower)
        return self._frozen_fingerprint


def _seconds_per_grid(timestamps: Sequence[float], temporal_patch_size: int) -> float:
    """Mean seconds between temporal patches, rounded to float32 as the sampler will round it.

    A single frame has no interval and only one temporal position; one second per frame is assumed.
    """
    intervals = len(timestamps) - 1
    mean_interval = (timestamps[-1] - timestamps[0]) / intervals if intervals else 1.0
    return float(np.float32(mean_interval * temporal_patch_size))
