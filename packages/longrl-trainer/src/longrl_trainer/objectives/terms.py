"""The objectives of both stages, token by token: pure functions of log-probabilities.

Shapes: R response tokens of one branch. Every function here returns one value per token; `response_weights` gives the
weight of each response, so that a step's loss is `sum_i weight_i * sum_t loss_{i,t}` and its groups may be computed one
after the other, in any order, with the same result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longrl_trainer.config.sections import AggregationName


def kl_divergence_k3(logprobs_R: Tensor, reference_logprobs_R: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy, reference) at every sampled token, shape [R].

    With d = reference logprob - logprob: `exp(d) - d - 1`. Schulman, "Approximating KL divergence" (k3); DeepSeekMath
    (arXiv 2402.03300), eq. 4.
    """
    difference_R = reference_logprobs_R - logprobs_R
    return torch.exp(difference_R) - difference_R - 1.0


def response_weights(lengths: Sequence[int], aggregation: AggregationName, *, max_response_tokens: int) -> list[float]:
    """Weight of every token of each response in the loss of a step.

    token      1 / (all tokens of the step): long responses count more. DAPO (arXiv 2503.14476), eq. 12.
    sequence   1 / (responses x own length): every response counts the same. DeepSeekMath (arXiv 2402.03300), eq. 3.
    constant   1 / (responses x max_response_tokens): no length bias. Dr. GRPO (arXiv 2503.20783), section 3.2.

    Args:
        lengths: Number of tokens of every judged response of the step, including groups without spread.
        aggregation: One of the three names.
        max_response_tokens: The sampler's limit; only "constant" uses it.
    """
    match aggregation:
        case "token":
            num_tokens = sum(lengths)
            return [1.0 / num_tokens if num_tokens else 0.0 for _ in lengths]
        case "sequence":
            return [1.0 / (len(lengths) * length) if length else 0.0 for length in lengths]
        case "constant":
            return [1.0 / (len(lengths) * max_response_tokens) for _ in lengths]
