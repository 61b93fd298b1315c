"""How the media of a family are written into a sampler's request.

A request either carries the embeddings, or only says how large they are and how they lie in time, and vLLM's worker
reads them from the store by their names (`mrsp_engine.rollout.vllm.embedding_connector`).

A family is found through an entry point in the group `mrsp_engine.sampler_media`, under the checkpoint's `model_type`;
one that has none reads text only.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.prompts import Prompt

__all__ = ["SamplerMedia", "StoredSamplerMedia", "find_sampler_media"]

ENTRY_POINT_GROUP = "mrsp_engine.sampler_media"


class SamplerMedia:
    """A family as vLLM wants it; this one reads text only.

    Attributes:
        limits: Raw media per prompt: 0 for every modality whose encoder vLLM shouldn't load.
        options: Further options of vLLM's engine.
        placeholder_keys: Where config.json names the placeholder tokens.
        subfolder: Where the model that vLLM runs lies in the checkpoint's folder.
        kept_positions: Times the trained length for which vLLM keeps rotary positions ready.
    """

    limits: ClassVar[Mapping[str, int]] = {}
    options: ClassVar[Mapping[str, Any]] = {}
    placeholder_keys: ClassVar[tuple[str, ...]] = ()
    subfolder: ClassVar[str] = ""
    kept_positions: ClassVar[int] = 1

    def placeholder_ids(self, folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
        """Tokens that stand for media, in the checkpoint whose model lies in `folder` with this config.json."""
        return frozenset(int(config[key]) for key in self.placeholder_keys if key in config)

    def embedding_width(self, config: Mapping[str, Any]) -> int:
        """Columns of an embedding."""
        return int(config.get("text_config", config)["hidden_size"])

    def data(self, modality: str, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """One modality's entry in a request that carries embeddings."""
        raise NotImplementedError(f"{type(self).__name__} has no media")

    def request(self, prompt: Prompt, embeddings: Sequence[Tensor], name: Callable[[MediaReference], str]) -> Any:
        """A request that carries embeddings, those of the prompt's media in order."""
        return self._request(
            prompt,
            name,
            lambda modality, places: self.data(
                modality, [prompt.media[place] for place in places], [embeddings[place] for place in places]
            ),
        )

    def _request(
        self,
        prompt: Prompt,
        name: Callable[[MediaReference], str],
        data: Callable[[str, list[int]], dict[str, Any]],
    ) -> dict[str, Any]:
        """One entry per modality, whose media keep their order."""
        places: dict[str, list[int]] = {}
        for place, medium in enumerate(prompt.media):
            places.setdefault(medium.modality, []).append(place)
        return {
            "prompt_token_ids": list(prompt.token_ids),
            "multi_modal_data": {modality: data(modality, of_modality) for modality, of_modality in places.items()},
            "multi_modal_uuids": {
                modality: [name(prompt.media[place]) for place in of_modality]
                for modality, of_modality in places.items()
            },
        }


class StoredSamplerMedia(SamplerMedia):
    """A family whose embeddings vLLM's worker can read from the store itself."""

    def reference(self, modality: str, media: Sequence[MediaReference]) -> dict[str, Any]:
        """One modality's entry in a request that carries none."""
        raise NotImplementedError

    def reference_request(self, prompt: Prompt, name: Callable[[MediaReference], str]) -> dict[str, Any]:
        """A request that carries no embeddings."""
        return self._request(
            prompt, name, lambda modality, places: self.reference(modality, [prompt.media[place] for place in places])
        )


def find_sampler_media(model_type: str) -> SamplerMedia:
    """How the media of a checkpoint are written, as its family says."""
    entry = next((entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == model_type), None)
    return SamplerMedia() if entry is None else cast(SamplerMedia, entry.load()())
