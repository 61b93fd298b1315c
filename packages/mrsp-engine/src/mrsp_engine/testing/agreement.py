"""How far sampler and trainer differ, for tests of families and of rollout engines.

Both score the same tokens with weights, positions and embeddings that should be the same. A family passes when the gap
before and after a weight update is only rounding, and far larger while the sampler has the old weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings, require_rollouts


def logprob_gaps(
    policy: Policy, prompts: Sequence[Prompt], outcomes: Sequence[list[Rollout] | Refusal], *, temperature: float
) -> Tensor:
    """Absolute difference of the sampler's and the policy's log-probability of every sampled token, float64.

    Args:
        policy: Scores the tokens.
        prompts: The prompts that were sampled.
        outcomes: What the sampler returned for each of them.
        temperature: The sampler's divisor of the logits.

    Raises:
        EngineError: A prompt was refused.
    """
    gaps = [torch.empty(0, dtype=torch.float64)]
    for prompt, rollouts in zip(prompts, map(require_rollouts, outcomes), strict=True):
        branches = [Branch(token_ids=rollout.token_ids) for rollout in rollouts]
        with torch.no_grad():
            scores = score_branches(policy, prompt, branches, temperature=temperature)
        for rollout, scored in zip(rollouts, scores.logprobs, strict=True):
            gaps.append((torch.tensor(rollout.logprobs, dtype=torch.float64) - scored.double().cpu()).abs())
    return torch.cat(gaps)


def gaps_around_an_update(
    engine: RolloutEngine,
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    *,
    strength: float = 0.05,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gaps before the weights change, while the engine still has the old ones, and once it has the new ones.

    `strength` is that of the change; in bfloat16 larger weights also make the gap of rounding larger.
    """

    def measure() -> Tensor:
        return logprob_gaps(policy, prompts, engine.generate(prompts, sampling), temperature=sampling.temperature)

    before = measure()
    disturb_weights(policy, strength=strength)
    stale = measure()
    engine.update_weights(policy)
    return before, stale, measure()


def disturb_weights(policy: Policy, *, seed: int = 0, strength: float = 0.05) -> None:
    """Add seeded noise to all trained parameters: a change that a sampler with the old weights can't hide.

    `strength` is its standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=strength)
