"""How media are written into a sampler's request, for every modality.

A request either carries the embeddings, or only says how large they are and how they lie in time, and vLLM's worker
reads them from the store by their names (`mrsp_engine.rollout.embedding_connector`).

Video is the engine's own case. A family with other media brings its own through an entry point in the group
`mrsp_engine.sampler_media`, under the checkpoint's `model_type`; nothing here names one.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from mrsp_engine.media import MediaReference

__all__ = ["SamplerMedia", "StoredSamplerMedia", "VideoSamplerMedia", "find_sampler_media"]

ENTRY_POINT_GROUP = "mrsp_engine.sampler_media"


class SamplerMedia(Protocol):
    """One modality as vLLM wants it."""

    @property
    def modality(self) -> str:
        """VLLM's name of the modality."""
        ...

    @property
    def limits(self) -> Mapping[str, int]:
        """Raw media per prompt: 0 for every modality of the model, so that no encoder is loaded."""
        ...

    @property
    def placeholder_key(self) -> str:
        """Where config.json names the placeholder token."""
        ...

    def data(self, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """The modality's entry in a request that carries embeddings."""
        ...


@runtime_checkable
class StoredSamplerMedia(SamplerMedia, Protocol):
    """A modality whose embeddings vLLM's worker can read from the store itself."""

    def reference(self, media: Sequence[MediaReference]) -> dict[str, Any]:
        """The modality's entry in a request that carries none."""
        ...


class VideoSamplerMedia:
    """Videos with their grids and timing; positions depend on both."""

    modality = "video"
    limits: Mapping[str, int] = {"image": 0, "video": 0}
    placeholder_key = "video_token_id"

    def data(self, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """See `SamplerMedia.data`."""
        return {"video_embeds": torch.cat(list(embeddings))} | self.reference(media)

    def reference(self, media: Sequence[MediaReference]) -> dict[str, Any]:
        """See `StoredSamplerMedia.reference`."""
        return {
            "video_grid_thw": torch.tensor([medium.grid_thw for medium in media]),
            "second_per_grid_ts": torch.tensor([medium.seconds_per_grid for medium in media]),
        }


def find_sampler_media(model_type: str) -> SamplerMedia:
    """The modality of a checkpoint: as its family says, and video if it says nothing."""
    entry = next((entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == model_type), None)
    return VideoSamplerMedia() if entry is None else cast(SamplerMedia, entry.load()())
