"""How stored audio embeddings are handed to vLLM.

The class is an entry point in the group `mrsp_engine.sampler_media`, under the `model_type` of the checkpoints whose
requests it writes. It knows vLLM's names for things, and imports nothing of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.sampler_media import SamplerMedia


class AudioSamplerMedia(SamplerMedia):
    """Requests of Qwen2-Audio."""

    limits: ClassVar[Mapping[str, int]] = {"audio": 0}
    """No audio tower in the sampler; embeddings still pass."""
    placeholder_keys = ("audio_token_index",)

    def data(self, modality: str, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """See `SamplerMedia.data`; positions are one-dimensional, so there is no timing to pass on."""
        return {"audio_embeds": list(embeddings)}
