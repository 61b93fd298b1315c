"""How stored audio embeddings are passed to vLLM.

The class is an entry point in the group `mrsp_engine.sampler_media`, under the `model_type` of the checkpoints whose
requests it writes. It uses vLLM's names, but imports nothing from it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.sampler_media import SamplerMedia


class AudioSamplerMedia(SamplerMedia):
    """Requests of Qwen2-Audio."""

    limits: ClassVar[Mapping[str, int]] = {"audio": 0}
    """No audio tower in the sampler; embeddings are still accepted."""
    placeholder_keys = ("audio_token_index",)

    def data(self, modality: str, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """See `SamplerMedia.data`; positions are one-dimensional, so there is no timing to pass."""
        return {"audio_embeds": list(embeddings)}
