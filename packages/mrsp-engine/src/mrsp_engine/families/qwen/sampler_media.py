"""How videos and images of the Qwen-VL families are written into a sampler's request."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.audio_encoder import MEL_FRAMES_PER_ROW
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.sampler_media import StoredSamplerMedia
from mrsp_engine.positions import FILM_SOUND
from mrsp_engine.prompts import Prompt


class Qwen25VlSamplerMedia(StoredSamplerMedia):
    """Videos with their grids and timing, both of which determine positions, and images with their grids."""

    limits: ClassVar[Mapping[str, int]] = {"image": 0, "video": 0}
    placeholder_keys = ("video_token_id", "image_token_id")
    kept_positions = 4  # positions encode time, so there may be fewer tokens than positions

    def data(self, modality: str, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """See `SamplerMedia.data`."""
        return {f"{modality}_embeds": torch.cat(list(embeddings))} | self.reference(modality, media)

    def reference(self, modality: str, media: Sequence[MediaReference]) -> dict[str, Any]:
        """See `StoredSamplerMedia.reference`."""
        grids = {f"{modality}_grid_thw": torch.tensor([medium.grid_thw for medium in media])}
        return grids | (self._timing(media) if modality == "video" else {})

    def _timing(self, media: Sequence[MediaReference]) -> dict[str, Any]:
        return {"second_per_grid_ts": torch.tensor([medium.seconds_per_grid for medium in media])}


class Qwen25OmniSamplerMedia(Qwen25VlSamplerMedia):
    """The same under the names of Qwen2.5-Omni's thinker."""

    limits: ClassVar[Mapping[str, int]] = {"image": 0, "video": 0, "audio": 0}
    placeholder_keys = ("video_token_index", "image_token_index", "audio_token_index")

    def placeholder_ids(self, folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
        """See `SamplerMedia.placeholder_ids`."""
        return super().placeholder_ids(folder, config["thinker_config"])

    def data(self, modality: str, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """See `SamplerMedia.data`.

        Raises:
            EngineUsageError: The medium is a sound, of which vLLM takes no embeddings in a request.
        """
        if modality in ("audio", FILM_SOUND):
            raise EngineUsageError(
                "read_store=False: vLLM takes no embeddings of sound in a request of Qwen2.5-Omni; set it to True"
            )
        return super().data(modality, media, embeddings)

    def reference_request(self, prompt: Prompt, name: Callable[[MediaReference], str]) -> dict[str, Any]:
        """See `StoredSamplerMedia.reference_request`; that films are heard is told in their data."""
        request = super().reference_request(prompt, name)
        data, names = request["multi_modal_data"], request["multi_modal_uuids"]
        if FILM_SOUND in data:
            data["audio"], names["audio"] = data.pop(FILM_SOUND), names.pop(FILM_SOUND)
            data["video"]["use_audio_in_video"] = torch.tensor(True)
        return request

    def reference(self, modality: str, media: Sequence[MediaReference]) -> dict[str, Any]:
        """See `StoredSamplerMedia.reference`; a recording is described by its number of mel frames."""
        if modality in ("audio", FILM_SOUND):
            frames = [MEL_FRAMES_PER_ROW * medium.num_tokens for medium in media]
            return {"audio_feature_lengths": torch.tensor(frames)}
        return super().reference(modality, media)


class Qwen2VlSamplerMedia(Qwen25VlSamplerMedia):
    """The same without timing, which Qwen2-VL's positions don't use."""

    def _timing(self, media: Sequence[MediaReference]) -> dict[str, Any]:
        return {}


class Qwen3VlSamplerMedia(Qwen25VlSamplerMedia):
    """The same with the times that vLLM writes into the prompt, and with DeepStack's levels in each row.

    vLLM disables DeepStack if it is told not to load the tower, so the tower is loaded. It never runs, not even for
    profiling.
    """

    limits: ClassVar[Mapping[str, int]] = {}
    options: ClassVar[Mapping[str, Any]] = {"skip_mm_profiling": True}
    kept_positions = 1

    def embedding_width(self, config: Mapping[str, Any]) -> int:
        """See `SamplerMedia.embedding_width`."""
        return super().embedding_width(config) * (1 + len(config["vision_config"]["deepstack_visual_indexes"]))

    def _timing(self, media: Sequence[MediaReference]) -> dict[str, Any]:
        return {"timestamps": [list(medium.grid_seconds) for medium in media]}


class Qwen35SamplerMedia(Qwen3VlSamplerMedia):
    """The same without DeepStack, so no tower is needed."""

    limits: ClassVar[Mapping[str, int]] = {"image": 0, "video": 0}
    options: ClassVar[Mapping[str, Any]] = {}

    def embedding_width(self, config: Mapping[str, Any]) -> int:
        """See `SamplerMedia.embedding_width`."""
        return Qwen25VlSamplerMedia.embedding_width(self, config)
