"""How the media of a family are written into a sampler's request.

A request either carries the embeddings, or only their sizes and timing; vLLM's worker then reads them from the store by
name (`mrsp_engine.rollout.vllm.embedding_connector`).

A family is found through an entry point in the group `mrsp_engine.sampler_media`, under the checkpoint's `model_type`;
a family without one is text-only.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.prompts import Prompt
from mrsp_engine.rotary import language_section

__all__ = ["SamplerMedia", "StoredSamplerMedia", "find_sampler_media"]

ENTRY_POINT_GROUP = "mrsp_engine.sampler_media"


class SamplerMedia:
    """How a family's media are passed to vLLM; this base class supports text only.

    Attributes:
        limits: Maximum raw media per prompt: 0 for every modality whose encoder vLLM shouldn't load.
        options: Further options of vLLM's engine.
        placeholder_keys: Keys of config.json that name the placeholder tokens.
        subfolder: Subfolder of the checkpoint with the model that vLLM runs.
        kept_positions: Number of rotary positions that vLLM precomputes, as a multiple of the trained length.
    """

    limits: ClassVar[Mapping[str, int]] = {}
    options: ClassVar[Mapping[str, Any]] = {}
    placeholder_keys: ClassVar[tuple[str, ...]] = ()
    subfolder: ClassVar[str] = ""
    kept_positions: ClassVar[int] = 1

    def placeholder_ids(self, folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
        """Tokens that represent media, in the checkpoint whose model is in `folder` with this config.json."""
        return frozenset(int(config[key]) for key in self.placeholder_keys if key in config)

    def embedding_width(self, config: Mapping[str, Any]) -> int:
        """Width of an embedding."""
        return int(language_section(config)["hidden_size"])

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
        """One entry per modality, with its media in order."""
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
        """One modality's entry in a request without embeddings."""
        raise NotImplementedError

    def reference_request(self, prompt: Prompt, name: Callable[[MediaReference], str]) -> dict[str, Any]:
        """A request without embeddings."""
        return self._request(
            prompt, name, lambda modality, places: self.reference(modality, [prompt.media[place] for place in places])
        )


def find_sampler_media(model_type: str) -> SamplerMedia:
    """How the checkpoint's family writes media."""
    entry = next((entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == model_type), None)
    return SamplerMedia() if entry is None else cast(SamplerMedia, entry.load()())
