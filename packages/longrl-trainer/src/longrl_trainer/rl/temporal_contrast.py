"""What the order of frames is worth: questions of a step asked again with the frames of their videos in a random order.

Questions that the model answers better when it sees the frames in their order get a larger weight
(`objectives.terms.temporal_weight`); the responses to shuffled frames are judged and not trained on.

What is shuffled are the groups of frames that an encoder encodes together, by the rows of their embeddings. Attention
in an encoder never leaves a group, so these are exactly the embeddings of a video with its groups in that order, and
nothing is decoded or encoded again; single frames, shuffled anew in every step, would all go through the tower again.
Neighbours within a group keep their order, and positions and times stay those of the place, not of the frames. The
shuffled embeddings have names of their own, so that no cache takes them for others; each rank holds those of a step in
memory while it samples.

Shape legend: N rows of a medium, T groups of frames, D width of an embedding.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.objectives.terms import temporal_weight
from longrl_trainer.questions.candidates import find_control_tokens
from longrl_trainer.questions.frames import resolve_frames
from longrl_trainer.questions.question import Question, build_question_prompt
from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import ResponseScore, WeightedReward
from longrl_trainer.rl.groups import RolloutGroup
from longrl_trainer.runs.judging import judge_responses
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.base import Policy
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalContrast:
    """A question that was answered in both orders.

    Attributes:
        ordered: Share of right answers to frames in their order.
        shuffled: Share of right answers to frames in a random order.
        weight: The weight that follows for its advantages.
    """

    ordered: float
    shuffled: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledMedium:
    """A video whose groups of frames are shown in another order.

    Attributes:
        source: The video in its order.
        order: For each place the group that is shown there.
        reference: The shuffled video, with a name of its own.
    """

    source: MediaReference
    order: tuple[int, ...]
    reference: MediaReference

    @classmethod
    def of(cls, source: MediaReference, *, seed: int) -> "ShuffledMedium":
        """Shuffle a video of two groups or more; the seed determines the order, which is never the old one."""
        generator, old = random.Random(seed), tuple(range(source.grid_thw[0]))
        order = old
        while order == old:
            order = tuple(generator.sample(old, len(old)))
        name = hashlib.sha256(f"{source.key} {' '.join(map(str, order))}".encode()).hexdigest()
        return cls(source=source, order=order, reference=replace(source, key=name))

    def arrange(self, rows_ND: Tensor) -> Tensor:
        """The rows of the video [N, D] in the order of this one."""
        return rows_ND.unflatten(0, (len(self.order), -1))[list(self.order)].flatten(0, 1)


def refuse_single_groups(config: GrpoConfig) -> None:
    """Refuse to weigh by order where every video is a single group of frames, before a model is loaded.

    Frames of a group keep their order, so a video needs more of them than the encoder encodes together: three in Qwen's
    families, which encode pairs, and two where frames are encoded alone.

    Raises:
        TrainerUsageError: No video has so many.
    """
    if not config.parts.temporal_weight or not (config.model.folder / "config.json").is_file():
        return
    shown = resolve_frames(config.data, config.model.folder)
    name, most = ("num_frames", shown.num_frames) if shown.num_frames else ("max_frames", shown.max_frames)
    vision = CheckpointFolder(config.model.folder).read("config.json").get("vision_config")
    together = cast(dict[str, Any], vision).get("temporal_patch_size") if isinstance(vision, dict) else None
    together = together if isinstance(together, int) else 1
    if most is not None and most <= together:
        kept = f"the model encodes {together} frames together, which keep their order" if together > 1 else "it is one"
        raise TrainerUsageError(
            f"temporal_weight={config.parts.temporal_weight} with data.{name}={most}: there is nothing to shuffle, "
            f"because {kept}; expected {together + 1} or more, or temporal_weight=0"
        )


def contrast_groups(
    groups: Sequence[RolloutGroup],
    sampler: RolloutEngine,
    policy: Policy,
    rewards: Sequence[WeightedReward],
    config: GrpoConfig,
    ranks: Ranks,
    *,
    step: int,
) -> tuple[list[RolloutGroup], list[TemporalContrast], list[Refusal]]:
    """Weigh groups by what the order of frames was worth; all ranks call this together, while a step's media are lent.

    A group without a video, whose video has a single group of frames, or whose answers couldn't be judged, keeps the
    weight 1.

    Returns:
        All groups, the contrasts of those that were asked in both orders, and prompts that the sampler refused.

    Raises:
        TrainerError: The sampler refused all of them.
    """
    shuffled = {
        place: [_shuffle(medium, config, step, group, number) for number, medium in enumerate(group.question.media)]
        for place, group in enumerate(groups)
        if any(map(can_shuffle, group.question.media))
    }
    asked = [
        replace(groups[place].question, media=tuple(map(_reference_of, media))) for place, media in shuffled.items()
    ]
    prompts = [build_question_prompt(policy, question, config.data.system) for question in asked]
    settings = SamplingSettings(
        temperature=config.temperature,
        max_tokens=config.max_response_tokens,
        num_samples=config.shuffled_responses or max(1, config.group_size // 2),
        seed=derive_seed(config.seed, "shuffled rollout", step),
    )
    made = [medium for media in shuffled.values() for medium in media if isinstance(medium, ShuffledMedium)]
    with policy.store.lend(_make_rows(made, policy)):
        outcomes = sampler.generate(prompts, settings) if prompts else []
    answered = [
        (place, question, outcome)
        for place, question, outcome in zip(shuffled, asked, outcomes, strict=True)
        if not isinstance(outcome, Refusal)
    ]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refused and not answered:
        raise TrainerError(f"the sampler refused every question with shuffled frames: {refused[0].message}")
    shares = _judge(answered, rewards, ranks, find_control_tokens(policy))
    weighed, contrasts = list(groups), list[TemporalContrast]()
    for place, share in shares.items():
        group = groups[place]
        ordered = share_of_right_answers(group.scores, rewards, group.question.record)
        if ordered is not None and share is not None:
            weight = temporal_weight(ordered, share, bonus=config.parts.temporal_weight, margin=config.temporal_margin)
            weighed[place] = replace(group, prompt_weight=weight)
            contrasts.append(TemporalContrast(ordered=ordered, shuffled=share, weight=weight))
    return weighed, contrasts, refused


def can_shuffle(medium: MediaReference) -> bool:
    """Whether a medium is a video with an order to lose."""
    return medium.modality == "video" and medium.grid_thw[0] > 1


def share_of_right_answers(
    scores: Sequence[ResponseScore], rewards: Sequence[WeightedReward], record: QuestionRecord
) -> float | None:
    """Mean score of the responses to a question by the rewards that judge answers, those for some types of questions.

    Where several do, their mean by weight; where none does, that of all rewards. Responses that one of them couldn't
    judge are left out; None if none is left.
    """
    known = [weighted for weighted in rewards if weighted.weight > 0 and weighted.is_for(record)]
    judges = [weighted for weighted in known if weighted.question_types is not None] or known
    total = math.fsum(weighted.weight for weighted in judges)
    found: list[float] = []
    for score in scores:
        values = [(weighted.weight, score.terms[weighted.name].value) for weighted in judges]
        judged = [weight * value for weight, value in values if value is not None]
        if judges and len(judged) == len(judges):
            found.append(math.fsum(judged) / total)
    return math.fsum(found) / len(found) if found else None


def contrast_metrics(contrasts: Sequence[TemporalContrast]) -> dict[str, Any]:
    """What the journal says of a step's contrasts; without any all means are None."""

    def mean(values: Sequence[float]) -> float | None:
        return math.fsum(values) / len(values) if values else None

    return {
        "prompts": len(contrasts),
        "ordered_better_rate": mean([float(each.ordered > each.shuffled) for each in contrasts]),
        "ordered": mean([each.ordered for each in contrasts]),
        "shuffled": mean([each.shuffled for each in contrasts]),
        "weight": mean([each.weight for each in contrasts]),
    }


def _shuffle(
    medium: MediaReference, config: GrpoConfig, step: int, group: RolloutGroup, number: int
) -> MediaReference | ShuffledMedium:
    if not can_shuffle(medium):
        return medium
    seed = derive_seed(config.seed, "shuffle", step, group.question.record.question_id, number)
    return ShuffledMedium.of(medium, seed=seed)


def _reference_of(medium: MediaReference | ShuffledMedium) -> MediaReference:
    return medium.reference if isinstance(medium, ShuffledMedium) else medium


@torch.no_grad()
def _make_rows(media: Sequence[ShuffledMedium], policy: Policy) -> Mapping[str, Tensor]:
    """The embeddings of shuffled videos, by their names."""
    made: dict[str, Tensor] = {}
    for medium in media:
        rows_ND = policy.store.get(medium.source.key)
        if rows_ND is None:
            raise TrainerError(
                f"embedding {medium.source.key[:12]}… isn't in the store {policy.store.folder} any more; give it more "
                "room (model.store_bytes)"
            )
        made[medium.reference.key] = medium.arrange(rows_ND.detach())
    return made


def _judge(
    answered: Sequence[tuple[int, Question, Sequence[Rollout]]],
    rewards: Sequence[WeightedReward],
    ranks: Ranks,
    control_tokens: frozenset[int],
) -> dict[int, float | None]:
    """The share of right answers to each question, by the place of its group."""
    requests = [
        RewardRequest(
            response_text=rollout.text,
            finished=rollout.finished,
            record=question.record,
            has_control_token=not control_tokens.isdisjoint(rollout.token_ids),
        )
        for _, question, rollouts in answered
        for rollout in rollouts
    ]
    scores = iter(judge_responses(rewards, requests, ranks) if requests else ())
    return {
        place: share_of_right_answers([next(scores) for _ in rollouts], rewards, question.record)
        for place, question, rollouts in answered
    }
