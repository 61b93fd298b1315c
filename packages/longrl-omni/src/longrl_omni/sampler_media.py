"""How stored audio embeddings are handed to vLLM.

The class is an entry point in the group `mrsp_engine.sampler_media`, under the `model_type` of the checkpoints whose
requests it writes. It knows vLLM's names for things, and imports nothing of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mrsp_engine.media import MediaReference


class AudioSamplerMedia:
    """Requests of Qwen2-Audio."""

    modality = "audio"
    limits: Mapping[str, int] = {"audio": 0}
    """No audio tower in the sampler; embeddings still pass."""
    placeholder_key = "audio_token_index"
    """Where config.json names the placeholder token."""

    def data(self, media: Sequence[MediaReference], embeddings: Sequence[Tensor]) -> dict[str, Any]:
        """The modality's entry in a request; positions are one-dimensional, so there is no timing to pass on."""
        return {"audio_embeds": list(embeddings)}
