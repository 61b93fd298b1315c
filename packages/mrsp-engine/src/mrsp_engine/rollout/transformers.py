"""Sampling with plain transformers: slow, simple, and available wherever the policy runs.

The prompt is computed once and its keys and values are repeated for the samples, which then grow together, so no
padding and no mask is needed. It is the rollout engine for machines without vLLM, and a cross-check on machines with
it. The policy provides the embeddings.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import (
    Refusal,
    RefusalReason,
    Rollout,
    SamplingSettings,
    WeightSource,
    language_weights,
)

__all__ = ["TransformersRolloutEngine"]


class TransformersRolloutEngine:
    """Samples with a policy's own model; see `RolloutEngine`.

    Args:
        policy: The policy to sample from, with its weights at the time of sampling.
        seed: Seed of the engine's own random sequence.

    Attributes:
        bytes_received: See `CountsWeights`.
    """

    def __init__(self, policy: Policy, *, seed: int = 0) -> None:
        self.bytes_received = 0
        self._policy: Policy | None = policy
        self._generator = torch.Generator().manual_seed(seed)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout] | Refusal]:
        """See `RolloutEngine.generate`."""
        policy = self._require_open()
        if policy.is_sharded:
            raise EngineUsageError(
                "this engine samples with whole weights; give it a policy whose weights aren't sharded"
            )
        generator = self._generator
        if sampling.seed is not None:
            generator = torch.Generator().manual_seed(sampling.seed)
        was_training = policy.model.training
        policy.model.eval()
        try:
            with torch.no_grad():
                return [_sample(policy, prompt, sampling, generator) for prompt in prompts]
        finally:
            policy.model.train(was_training)

    def update_weights(self, policy: WeightSource) -> None:
        """See `RolloutEngine.update_weights`; another policy's weights are copied, this policy's are already in use."""
        own = self._require_open()
        if policy is own:
            return
        if own.adapters is not None:
            raise EngineError("this engine's own model has adapters, so it can't take another model's weights")
        targets, num_bytes = dict(language_weights(own)), 0
        with torch.no_grad():
            for name, tensor in language_weights(policy):
                if name not in targets or targets[name].shape != tensor.shape:
                    raise EngineError(f"weight {name} {tuple(tensor.shape)}: this engine's model has no such weight")
                targets[name].copy_(tensor)
                num_bytes += tensor.nbytes
        self.bytes_received += num_bytes

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`; the only memory is the policy's own."""
        self._require_open()

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self._policy = None

    def _require_open(self) -> Policy:
        if self._policy is None:
            raise EngineError("this rollout engine was closed; start a new one")
        return self._policy


def _sample(
    policy: Policy, prompt: Prompt, sampling: SamplingSettings, generator: torch.Generator
) -> list[Rollout] | Refusal:
    """Draw G = num_samples responses to one prompt of P tokens."""
    try:
        embeddings_1PD = policy.embed(prompt)[None]
    except EngineError as error:  # an embedding is missing, or belongs to another model
        return Refusal(reason=RefusalReason.EMBEDDING_UNUSABLE, message=str(error))
    cache = DynamicCache(config=cast(Any, policy.decoder).config)  # which knows the layers that keep a state instead
    positions = prompt.positions.to(policy.device)  # [axes, P]
    next_position = int(positions.max()) + 1
    hidden = _run(policy, embeddings_1PD, positions[:, None], cache)
    first_G = torch.zeros(sampling.num_samples, dtype=torch.int64, device=policy.device)
    cache.reorder_cache(cast(Any, first_G))  # repeats the only row; layers that keep a state have no other way to do it
    logits_GV = policy.language_model_head(hidden[:, -1]).expand(sampling.num_samples, -1)
    ends = torch.tensor(policy.end_token_ids)
    finished_G = torch.zeros(sampling.num_samples, dtype=torch.bool)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for step in range(sampling.max_tokens):
        token_G, logprob_G = draw(logits_GV, sampling, generator)
        tokens.append(token_G)
        logprobs.append(logprob_G)
        finished_G |= torch.isin(token_G, ends)
        if bool(finished_G.all()) or step + 1 == sampling.max_tokens:
            break
        positions = torch.full((prompt.positions.shape[0], sampling.num_samples, 1), next_position + step)
        embeddings_G1D = policy.embed_tokens(token_G.to(policy.device))[:, None]
        logits_GV = policy.language_model_head(_run(policy, embeddings_G1D, positions.to(policy.device), cache)[:, -1])
    return _collect(policy, torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1))


def draw(logits_GV: Tensor, sampling: SamplingSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one token per row; returns tokens and their log-probabilities when drawn, both [G] on the CPU."""
    logits_GV = logits_GV.detach().cpu()
    if logits_GV.dtype != torch.float64:
        logits_GV = logits_GV.float()
    if sampling.temperature == 0:
        logprobs_GV = logits_GV.log_softmax(dim=-1)
        token_G = logprobs_GV.argmax(dim=-1)
    else:
        logprobs_GV = _nucleus(logits_GV / sampling.temperature, sampling.top_p).log_softmax(dim=-1)
        token_G = torch.multinomial(logprobs_GV.exp(), 1, generator=generator)[:, 0]
    return token_G, logprobs_GV.gather(1, token_G[:, None])[:, 0]


def _nucleus(logits_GV: Tensor, top_p: float) -> Tensor:
    if top_p >= 1:
        return logits_GV
    values_GV, order_GV = logits_GV.sort(dim=-1, descending=True)
    before_GV = values_GV.softmax(dim=-1).cumsum(dim=-1) - values_GV.softmax(dim=-1)
    values_GV = values_GV.masked_fill(before_GV >= top_p, -torch.inf)
    return torch.empty_like(values_GV).scatter(1, order_GV, values_GV)


def _run(policy: Policy, embeddings: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Last hidden states [B, S, D] of embeddings [B, S, D] at positions [axes, B, S] that follow the cache."""
    if positions.shape[0] == 1:
        positions = positions[0]
    inputs = policy.decoder_inputs(embeddings)
    output = policy.decoder(**inputs, position_ids=positions, past_key_values=cache, use_cache=True)
    return cast(Tensor, output.last_hidden_state)


def _collect(policy: Policy, tokens_GR: Tensor, logprobs_GR: Tensor) -> list[Rollout]:
    rollouts: list[Rollout] = []
    for row, row_logprobs in zip(tokens_GR.tolist(), logprobs_GR.tolist(), strict=True):
        length = next((index + 1 for index, token in enumerate(row) if token in policy.end_token_ids), None)
        kept = tuple(cast(list[int], row[:length]))
        rollouts.append(
            Rollout(
                token_ids=kept,
                logprobs=tuple(cast(list[float], row_logprobs[:length])),
                text=policy.tokenizer.decode(list(kept), skip_special_tokens=True),
                finished=length is not None,
            )
        )
    return rollouts
