"""Importance weights for the difference between the sampler's and the trainer's arithmetic: pure functions.

Responses are drawn from the sampler's distribution, and the loss assumes that they came from the trainer's. In low
precision these differ. A weight `exp(trainer logprob - sampler logprob)` makes up for it, by token or, as the product
over its tokens, by response; large weights are bounded, because a few of them would decide the whole gradient:

    token_truncate, sequence_truncate   min(weight, cap): truncated importance sampling, Ionides 2008, and for samplers
                                        of language models Yao et al. 2025, "Your Efficient RL Framework Secretly
                                        Brings You Off-Policy RL Training"
    token_mask, sequence_mask           weight where it is at most cap, else 0: Liu et al. 2025, "When Speed Kills
                                        Stability: Demystifying RL Collapse from the Training-Inference Mismatch"

Weights by response are exact but vary with its length; weights by token ignore what earlier tokens do to later ones.

Shape legend: R tokens of a response.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_trainer.config.sections import CorrectionName


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerWeights:
    """The importance weights of a response, without gradient."""

    weights: Tensor
    """Weight of every token [R], or of the response [1]."""
    is_capped: Tensor
    """Where the weight exceeded the cap, of the same shape."""


def sampler_weights(
    logprobs_R: Tensor, sampler_logprobs_R: Tensor, name: CorrectionName, *, cap: float
) -> SamplerWeights | None:
    """The weights of one response; None for "none".

    Args:
        logprobs_R: The trainer's, with the weights that the response was drawn with.
        sampler_logprobs_R: The sampler's, of the same tokens.
        name: How weights are taken and bounded.
        cap: The largest weight that is kept.
    """
    if name == "none":
        return None
    difference_R = logprobs_R.detach().double() - sampler_logprobs_R.to(logprobs_R.device, torch.float64)
    if name in ("sequence_truncate", "sequence_mask"):
        difference_R = difference_R.sum(0, keepdim=True)
    free = torch.exp(difference_R)
    is_capped = free > cap
    bounded = free.clamp(max=cap) if name in ("token_truncate", "sequence_truncate") else free.masked_fill(is_capped, 0)
    return SamplerWeights(weights=bounded.to(logprobs_R.dtype), is_capped=is_capped)
