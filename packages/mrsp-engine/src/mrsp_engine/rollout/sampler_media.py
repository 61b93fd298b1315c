"""How stored embeddings are written into a sampler's request, for every modality.

Video is the engine's own case. A family with other media brings its own through an entry point in the group
`mrsp_engine.sampler_media`, under the checkpoint's `model_type`; nothing here names one.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mrsp_engine.media import MediaReference

__all__ = ["SamplerMedia", "VideoSamplerMedia", "find_sampler_media"]

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
        """The modality's entry in a request."""
        ...


class VideoSamplerMedia:
    """Videos with their grids and timing; positions depend on both."""

    modality = "video"
    limits: Mapping[str, int] = {"image": 0, "video": 0}
    placeholder_key = "video_token_id"

    def data(self, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """See `SamplerMedia.data`."""
        return {
            "video_embeds": torch.cat(list(embeddings)),
            "video_grid_thw": torch.tensor([medium.grid_thw for medium in media]),
            "second_per_grid_ts": torch.tensor([medium.seconds_per_grid for medium in media]),
        }


def find_sampler_media(model_type: str) -> SamplerMedia:
    """The modality of a checkpoint: as its family says, and video if it says nothing."""
    entry = next((entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == model_type), None)
    return VideoSamplerMedia() if entry is None else cast(SamplerMedia, entry.load()())
