"""What every objective is made of beside the policy's own loss: pure functions of log-probabilities and lengths.

The divergence from the reference gives one value per token; `response_weights` gives the weight of each response, so
that a step's loss is `sum_i weight_i * sum_t loss_{i,t}` and its groups may be computed one after the other, in any
order, with the same result.

Shape legend: R response tokens of one branch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longrl_trainer.config.sections import AggregationName, KlEstimatorName


def kl_divergence(logprobs_R: Tensor, reference_logprobs_R: Tensor, estimator: KlEstimatorName) -> Tensor:
    """Estimate of KL(policy, reference) at every sampled token, shape [R].

    With d = reference logprob - logprob:

        k1  -d               unbiased; any sign; its own gradient has mean 0
        k2  d^2 / 2          biased, but its gradient is unbiased
        k3  exp(d) - d - 1   unbiased, never negative

    Schulman 2020, "Approximating KL divergence"; k3 in GRPO: DeepSeekMath (arXiv 2402.03300), eq. 4.
    """
    difference_R = reference_logprobs_R - logprobs_R
    match estimator:
        case "k1":
            return -difference_R
        case "k2":
            return difference_R.square() / 2
        case "k3":
            return torch.exp(difference_R) - difference_R - 1.0


def weighted_kl_divergence(
    logprobs_R: Tensor, old_logprobs_R: Tensor, reference_logprobs_R: Tensor, estimator: KlEstimatorName
) -> Tensor:
    """The estimate times the ratio `exp(logprob - old logprob)`, shape [R], through which the gradient passes too.

    Tokens come from the old policy; the ratio makes value and gradient of k1 and k3 unbiased for the present one.
    DeepSeek-V3.2 (arXiv 2512.02556), eq. 7.
    """
    return torch.exp(logprobs_R - old_logprobs_R) * kl_divergence(logprobs_R, reference_logprobs_R, estimator)


def overlong_penalty(num_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """What is added to the reward of a long response: 0 up to the buffer, then falling to -1 at the limit.

    `-(n - (max_tokens - buffer_tokens)) / buffer_tokens`, between -1 and 0. DAPO (arXiv 2503.14476), eq. 13.
    """
    excess = num_tokens - (max_tokens - buffer_tokens)
    return -min(max(excess / buffer_tokens, 0.0), 1.0)


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


def temporal_weight(ordered: float, shuffled: float, *, bonus: float, margin: float) -> float:
    """Weight of a question's advantages by what the order of frames is worth for answering it.

        1 + bonus   if ordered - shuffled > margin, else 1

    for the share of right answers to frames in their order, and in a random one. T-GRPO (Video-R1, arXiv 2503.21776),
    eq. 1, rewards right answers by `bonus` if `ordered >= shuffled`. Added to every right answer it vanishes where
    advantages are divided by the group's standard deviation: with rewards of 0 and 1 it stretches both alike. So it is
    a factor here, after whatever normalisation an estimator has; and a tie earns nothing, as order was of no use.

    Args:
        ordered: Share of right answers to ordered frames, from 0 to 1.
        shuffled: The same to shuffled ones.
        bonus: What is added to the weight.
        margin: How much higher the first has to be than the second.
    """
    return 1.0 + bonus if ordered - shuffled > margin else 1.0
