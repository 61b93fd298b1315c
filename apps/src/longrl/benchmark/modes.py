"""One GRPO step in four modes, which should differ only in time and memory.

`plain`      no MR-SP: the sampler and every pass over every response encode the frames again.
`cached`     frames encoded once, by all ranks together, and referred to; responses computed one by one.
`published`  MR-SP as published: `cached`, and every response's row split over all ranks.
`shared`     this engine: all responses of the group in one row after one prompt, split over all ranks.

Where rows aren't split, the responses are distributed over the ranks. In one process `published` equals `cached`.
Sampling is the same in all modes: `TransformersRolloutEngine` computes the prompt once for all the samples of a rank.

Shape legend: G responses, R tokens of a response.
"""

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from longrl.benchmark.measurement import StageClock
from longrl.benchmark.workload import QUESTION, Workload
from longrl_trainer.objectives.losses import clipped_loss
from longrl_trainer.objectives.terms import kl_divergence
from mrsp_engine.distributed.collectives import sum_gradients
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.parallel import PlannedMedium, encode_media
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.planner.costs import STAGES, Mode
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import SamplingSettings, require_rollouts
from mrsp_engine.rollout.transformers import TransformersRolloutEngine

MODES: tuple[Mode, ...] = get_args(Mode)

TEMPERATURE, CLIP, KL_COEFFICIENT, LEARNING_RATE = 1.0, 0.2, 1e-3, 1e-6


def run_step(work: Workload, mode: Mode) -> dict[str, float]:
    """Run one step with a video that no store has yet; returns this rank's seconds by stage."""
    policy, reference = work.models.policy, work.models.reference
    step = _Step(work, mode, StageClock(STAGES, policy.device))
    store = EmbeddingStore(work.scratch / "embeddings")
    policy.store = reference.store = store
    with step.clock("encode"):
        if mode != "plain":
            encode_media(work.models.encoder, [PlannedMedium(video=work.video, plan=work.plan)], store, work.group)
    prompt = policy.build_prompt(QUESTION, [work.plan.reference])
    with step.clock("rollout"):
        branches = step.draw(prompt)
    passes = step.passes(branches)
    with step.clock("old"):
        old = step.score(policy, prompt, passes)
    with step.clock("reference"):
        frozen = step.score(reference, prompt, passes)
    with step.clock("update"):
        for responses, old_logprobs, frozen_logprobs in zip(passes, old, frozen, strict=True):
            loss = torch.zeros((), device=policy.device)
            logprobs = step.compute(policy, prompt, responses)
            for index, own, before, apart in zip(responses, logprobs, old_logprobs, frozen_logprobs, strict=True):
                advantage = 1.0 if index % 2 else -1.0
                losses_R = clipped_loss(own, before, advantage, clip_low=CLIP, clip_high=CLIP).losses
                loss = loss + (losses_R + KL_COEFFICIENT * kl_divergence(own, apart, "k3")).sum()
            (loss / (work.group_size * work.response_tokens)).backward()
        if work.group is not None:
            sum_gradients(policy.model, work.group)
        work.models.optimizer.step(LEARNING_RATE)
    if work.group is not None:
        dist.barrier(group=work.group.process_group)
    shutil.rmtree(store.folder, ignore_errors=True)
    return step.clock.seconds


Responses = dict[int, Branch]
"""Indices of the responses that one pass computes together."""


class _Step:
    """The shared state of the stages of one step."""

    def __init__(self, work: Workload, mode: Mode, clock: StageClock) -> None:
        self.work, self.mode, self.clock = work, mode, clock

    def draw(self, prompt: Prompt) -> list[Branch]:
        """All G responses; every rank draws its own and receives those of the others."""
        work, policy = self.work, self.work.models.policy
        sampling = SamplingSettings(
            temperature=TEMPERATURE,
            max_tokens=work.response_tokens,
            num_samples=max(1, len(work.own_responses)),
            seed=0,
        )
        with self._encoded(policy):
            (outcome,) = TransformersRolloutEngine(policy).generate([prompt], sampling)
        drawn = [list(rollout.token_ids) for rollout in require_rollouts(outcome)]
        if work.group is not None:
            # A rank with fewer responses than the others pads, so that messages have one size.
            most = -(-work.group_size // work.num_ranks)
            tokens = torch.tensor((drawn * most)[:most], device=policy.device)
            gathered = [torch.empty_like(tokens) for _ in range(work.num_ranks)]
            dist.all_gather(gathered, tokens, group=work.group.process_group)
            drawn = torch.cat(gathered).tolist()[: work.group_size]
        return [Branch(token_ids=tuple(token_ids)) for token_ids in drawn]

    def passes(self, branches: Sequence[Branch]) -> list[Responses]:
        """The responses that this rank computes, grouped by pass."""
        numbered = dict(enumerate(branches))
        if self.mode == "shared":
            return [numbered]
        own = numbered if self.mode == "published" else self.work.own_responses
        return [{index: numbered[index]} for index in own]

    @torch.no_grad()
    def score(self, policy: Policy, prompt: Prompt, passes: Sequence[Responses]) -> list[list[Tensor]]:
        """Log-probabilities [R] of every response of every pass, without gradients."""
        return [self.compute(policy, prompt, responses) for responses in passes]

    def compute(self, policy: Policy, prompt: Prompt, responses: Responses) -> list[Tensor]:
        """Log-probabilities [R] of responses that are computed together."""
        with self._encoded(policy):
            return score_branches(
                policy,
                prompt,
                list(responses.values()),
                temperature=TEMPERATURE,
                share_prompt=self.mode == "shared",
                sequence_group=self.work.group if self.mode in ("published", "shared") else None,
            ).logprobs

    @contextmanager
    def _encoded(self, policy: Policy) -> Generator[None]:
        """Encode for this pass only, if nothing is cached."""
        if self.mode != "plain":
            yield
            return
        with self.clock("encode"):
            embedding = self.work.encode()
        with policy.store.lend({self.work.plan.key.digest: embedding}):
            yield


def rotated(modes: Sequence[Mode], repeat: int) -> tuple[Mode, ...]:
    """The modes in the order of a repeat; each repeat begins with a different one."""
    start = repeat % len(modes)
    return (*modes[start:], *modes[:start])
