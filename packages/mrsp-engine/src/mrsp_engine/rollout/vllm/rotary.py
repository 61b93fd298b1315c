"""Rotary positions in vLLM: configured to give the trainer's frequencies, and checked once it has started.

Where positions have several axes, a sequence may have more tokens than positions, so vLLM is told two lengths: its own
maximum, and the trained one, for which it precomputes positions.

For some models vLLM precomputes more positions than they have, and uses that larger number as the trained length when
it computes which frequencies YaRN stretches. Both bounds of that range are where a channel rotates `beta` times within
the trained length, so with both betas scaled by the same factor vLLM gets the range of the trained length.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.checkpoints import refuse_broken
from mrsp_engine.rotary import SECTIONS, longest_context, refuse_rotary

__all__ = ["SamplerRotary", "rotary_frequencies"]

BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""YaRN's defaults, where a checkpoint specifies none."""


class SamplerRotary:
    """The rotary positions of one checkpoint.

    Args:
        folder: Where the model that vLLM runs lies.
        config: Its config.json.
        kept_positions: Number of positions that vLLM precomputes, as a multiple of the trained length.
        max_model_len: Maximum length of a sequence, in tokens.

    Attributes:
        max_positions: Maximum number of positions of a sequence.

    Raises:
        EngineUsageError: vLLM can't use the trainer's frequencies.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, kept_positions: int, max_model_len: int) -> None:
        refuse_rotary(folder / "config.json", config)
        with refuse_broken(folder, str(config.get("model_type"))):
            loaded: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            text = loaded.get_text_config()
            self._frequencies, self._scale = rotary_frequencies(text)
            self._settings = _settings(text, kept_positions)
            self.max_positions = longest_context(text.to_dict())
        self._max_model_len = max_model_len
        self._has_several_axes = SECTIONS in self._settings

    def override(self, config: Any) -> Any:
        """Callback for vLLM, which passes the configuration that it loaded (`hf_overrides`)."""
        text = config.get_text_config()
        if hasattr(text, "rope_parameters"):  # it also calls this with an empty one
            text.rope_parameters = dict(self._settings)
            text.max_position_embeddings = self.max_positions
            if self._has_several_axes:
                text.model_max_length = max(self._max_model_len, self.max_positions)
        return config

    def check(self, model: Any) -> None:
        """Compare the frequencies of vLLM's running model with the trainer's.

        Raises:
            EngineUsageError: Fewer positions are precomputed than a sequence may have.
            EngineError: The frequencies differ.
        """
        tables = [
            module.cos_sin_cache for name, module in model.named_modules() if name.endswith("self_attn.rotary_emb")
        ]
        if not tables:
            raise EngineError(f"vLLM's {type(model).__name__} has no rotary positions in the expected place")
        positions = min(self._max_model_len, self.max_positions)
        for table_PC in tables:
            if len(table_PC) < positions:
                raise EngineUsageError(
                    f"max_model_len={self._max_model_len}: the checkpoint's rope_parameters cover {len(table_PC)} "
                    "positions; lower it, or raise factor there"
                )
            self._compare(table_PC)

    def _compare(self, table_PC: Tensor) -> None:
        """Check positions 1, 2, 4, …, with a tolerance for rounding of the angle and of the table."""
        positions_P = 2 ** torch.arange(len(table_PC).bit_length() - 1)
        angles_PF = positions_P[:, None] * self._frequencies
        expected_PC = torch.cat((angles_PF.cos(), angles_PF.sin()), dim=1) * self._scale
        allowed_PC = 1e-6 * torch.cat((angles_PF, angles_PF), dim=1) + 2 * torch.finfo(table_PC.dtype).eps * self._scale
        found_PC = table_PC[positions_P.to(table_PC.device)].float().cpu()
        if found_PC.shape != expected_PC.shape or not bool(((found_PC - expected_PC).abs() <= allowed_PC).all()):
            raise EngineError(
                f"vLLM computes other rotary frequencies than the trainer for rope_parameters={self._settings}; "
                'remove the scaling from config.json, or set the sampler\'s engine to "transformers"'
            )


def rotary_frequencies(config: Any) -> tuple[Tensor, float]:
    """The frequencies that transformers computes for a language model, and its factor for cosine and sine.

    Args:
        config: The language model's configuration, as transformers loads it.

    Returns:
        Radians per position of every pair of channels, float32 [C / 2], and the factor.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = int(channels * rope.get("partial_rotary_factor", 1))
    return 1.0 / rope["rope_theta"] ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels), 1.0


def _settings(config: Any, kept_positions: int) -> dict[str, Any]:
    """Rotary settings for vLLM: complete, and with the number types that it expects."""
    rope: dict[str, Any] = {name: value for name, value in config.rope_parameters.items() if value is not None}
    if rope["rope_type"] == "yarn":
        rope["factor"] = rope.get("factor") or config.max_position_embeddings / rope["original_max_position_embeddings"]
        rope |= {name: float(rope.get(name) or beta) * kept_positions for name, beta in BETAS.items()}
    if "factor" in rope:
        rope["factor"] = float(rope["factor"])
    return rope
