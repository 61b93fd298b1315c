"""Accuracy of a model on one split, with what is needed to interpret it.

Beside the accuracy the result has chance, the best constant letter, the share of unreadable answers (they are wrong),
the dropped questions, a standard error clustered by video, and every response. Rewards judge answers, as in training.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch

from longrl_trainer.config.stages import EvaluateConfig
from longrl_trainer.durable import readable_write_errors, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.evaluation.scoring.statistics import clustered_standard_error, mean
from longrl_trainer.questions.candidates import find_control_tokens
from longrl_trainer.questions.frames import describe_frames
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import QuestionSet, build_question_prompt
from longrl_trainer.questions.step_media import open_step
from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import WeightedReward, judged_types, load_rewards
from longrl_trainer.runs.export import open_named_model
from longrl_trainer.runs.judging import REWARDS_NAME, judge_responses, open_rewards
from longrl_trainer.runs.progress import ProgressDisplay, ProgressTask, SilentProgress
from longrl_trainer.runs.seen_videos import refuse_seen_videos
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.opening import check_sampler, open_engine, open_policy
from longrl_trainer.training.ranks import ALONE, Ranks, join_ranks
from longvideo_reason_data.ownership import own_file
from longvideo_reason_data.records.answers import ParseStatus, parse_response
from longvideo_reason_data.records.record import QuestionRecord
from longvideo_reason_data.records.splits import connect_media
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings

# Few enough for a moving progress bar, enough to keep a sampler busy.
PROMPTS_PER_CALL = 256
LIVE_PROMPTS_PER_CALL = 16  # where the embeddings of all media of a call are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedQuestion:
    """One response."""

    question_id: str
    media: tuple[str, ...]
    """Paths of the media that it is about."""
    skill: str
    response: str
    finished: bool
    status: str
    parsed: str | None
    answer: str
    correct: bool
    """Whether the answer is entirely right."""
    score: float | None
    """What the rewards give to it; None if they couldn't judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedQuestion:
    """A question for which the sampler returned no response."""

    question_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What `evaluate` writes; the fields are the keys of the JSON file."""

    accuracy: float
    """Mean score of the questions that could be judged: 1 for a right letter, and what the rewards say otherwise."""
    accuracy_standard_error: float
    """Clustered by media: questions that share one belong together."""
    accuracy_by_skill: dict[str, float]
    unparsed_rate: float
    """Share of responses from which no single answer could be parsed."""
    well_formed_rate: float
    finished_rate: float
    chance: float
    constant: float
    """Accuracy of the best constant letter on the same questions."""
    count: int
    """Number of judged questions."""
    not_judged: int
    """Number of answered questions that no reward could judge; they count as neither right nor wrong."""
    questions: dict[str, Any]
    """Number of questions: input, kept and dropped (by reason)."""
    prompts_refused: dict[str, int]
    """Kept questions that the sampler refused, by reason; they count as neither right nor wrong."""
    settings: dict[str, Any]
    items: list[EvaluatedQuestion]
    refused: list[RefusedQuestion]


def evaluate(
    config: EvaluateConfig,
    policy: Policy | None = None,
    engine: RolloutEngine | None = None,
    progress: ProgressDisplay | None = None,
) -> EvaluationResult:
    """Ask every question of a split and write the result.

    Args:
        config: The resolved recipe.
        policy: The model of `config.model`, if it is already loaded.
        engine: A sampler to use instead of opening one; it gets the policy's weights and stays open.
        progress: Where to show progress.
    """
    rewards = load_rewards(config.rewards)
    ranks = join_ranks(config.model)
    refuse_seen_videos(config)
    check_sampler(config.sampler, ranks)
    progress = progress if progress and ranks.is_first else SilentProgress()
    with readable_write_errors(config.output):  # checked before the work, not after it
        config.output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as owned:
        ranks.ask_first(lambda: owned.enter_context(own_file(config.output)))
        own = config.output.with_name(f"{config.output.stem}-{REWARDS_NAME}")
        owned.enter_context(open_rewards(rewards, own, ranks))
        model = owned.enter_context(open_named_model(config.model.folder, config.output, step=config.step, ranks=ranks))
        policy = policy or open_policy(config.model.model_copy(update={"folder": model.folder}), config.dtype)
        return _evaluate(config, policy, rewards, engine, progress, ranks)


def _evaluate(
    config: EvaluateConfig,
    policy: Policy,
    rewards: Sequence[WeightedReward],
    engine: RolloutEngine | None,
    progress: ProgressDisplay,
    ranks: Ranks,
) -> EvaluationResult:
    """Sample, count and write."""
    questions = load_questions(
        config.data,
        policy,
        progress=progress,
        blind=config.blind,
        judged_types=judged_types(rewards),
        limit=config.limit,
        response_tokens=lambda _: config.max_response_tokens,
        sampler=config.sampler,
        ranks=ranks,
    )
    description = f"Evaluate ({'blind' if config.blind else describe_frames(config.data)})"
    with (
        open_engine(
            config.sampler,
            policy,
            policy.folder,
            engine=engine,
            max_model_len=questions.longest_prompt + config.max_response_tokens,
            dtype=config.dtype,
            ranks=ranks,
        ) as sampler,
        progress.task(description, total=len(questions.kept)) as bar,
    ):
        asking = Asking(
            system=config.data.system,
            temperature=config.temperature,
            max_tokens=config.max_response_tokens,
            seed=config.seed,
        )
        outcomes = ask_questions(questions, policy, sampler, asking, ranks, bar)
    records = [question.record for question in questions.kept]
    result = summarise(
        records,
        outcomes,
        rewards=rewards,
        questions=questions.counts(),
        settings=config.model_dump(mode="json"),
        control_tokens=find_control_tokens(policy),
        ranks=ranks,
    )
    if ranks.is_first:
        write_json(config.output, asdict(result))
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How questions are asked.

    Attributes:
        system: System message before the media; None for none.
        temperature: Sampling temperature.
        max_tokens: Maximum tokens of a response.
        seed: Determines the sampled tokens where the temperature isn't 0.
    """

    system: str | None
    temperature: float
    max_tokens: int
    seed: int


@torch.no_grad()
def ask_questions(
    questions: QuestionSet, policy: Policy, sampler: RolloutEngine, asking: Asking, ranks: Ranks, bar: ProgressTask
) -> list[list[Rollout] | Refusal]:
    """One response to every question, or a refusal; all ranks call this together.

    Media whose embeddings aren't stored, since their encoder is trained, are encoded a few at a time.
    """
    outcomes: list[list[Rollout] | Refusal] = []
    size = LIVE_PROMPTS_PER_CALL if questions.plans else PROMPTS_PER_CALL
    for start in range(0, len(questions.kept), size):
        settings = SamplingSettings(
            temperature=asking.temperature,
            max_tokens=asking.max_tokens,
            seed=derive_seed(asking.seed, "evaluate", start),
        )
        (asked,), media = open_step(policy, [questions.kept[start : start + size]], questions.plans, ranks)
        prompts = [build_question_prompt(policy, question, asking.system) for question in asked]
        with media.lend():
            outcomes += sampler.generate(prompts, settings)
        bar.advance(len(asked))
    return outcomes


def summarise(
    asked: Sequence[QuestionRecord],
    outcomes: Sequence[Sequence[Rollout] | Refusal],
    *,
    rewards: Sequence[WeightedReward],
    questions: dict[str, Any],
    settings: dict[str, Any],
    control_tokens: frozenset[int] = frozenset(),
    ranks: Ranks = ALONE,
) -> EvaluationResult:
    """Count the first response per record, and what was refused; with a control token none is right or well formed.

    Raises:
        TrainerError: All prompts were refused.
    """
    pairs = list(zip(asked, outcomes, strict=True))
    answered = [(record, outcome[0]) for record, outcome in pairs if not isinstance(outcome, Refusal)]
    refused = [
        RefusedQuestion(question_id=record.question_id, reason=str(outcome.reason), detail=outcome.message)
        for record, outcome in pairs
        if isinstance(outcome, Refusal)
    ]
    if not answered:
        raise TrainerError(f"the sampler refused all {len(refused)} prompts; the first: {refused[0].detail}")
    holds = [not control_tokens.isdisjoint(rollout.token_ids) for _, rollout in answered]
    requests = [
        RewardRequest(response_text=rollout.text, finished=rollout.finished, record=record, has_control_token=one)
        for (record, rollout), one in zip(answered, holds, strict=True)
    ]
    scores = [score.total for score in judge_responses(rewards, requests, ranks)]
    parsed = [parse_response(rollout.text, record.options) for record, rollout in answered]
    judged = [(record, score) for (record, _), score in zip(answered, scores, strict=True) if score is not None]
    values, by_skill = [score for _, score in judged], dict[str, list[float]]()
    if not judged:
        raise TrainerError(f"none of the {len(answered)} answers could be judged; check the rewards' verifiers")
    for record, score in judged:
        by_skill.setdefault(str(record.skill), []).append(score)
    letters = Counter(record.answer for record, _ in judged if record.options)
    connected = connect_media(record.digests for record, _ in judged)
    items = [
        EvaluatedQuestion(
            question_id=record.question_id,
            media=tuple(medium.path for medium in record.media),
            skill=str(record.skill),
            response=rollout.text,
            finished=rollout.finished,
            status=str(answer.status),
            parsed=answer.letter if record.options else answer.text,
            answer=record.answer,
            correct=score is not None and score >= 1.0,
            score=score,
        )
        for (record, rollout), answer, score in zip(answered, parsed, scores, strict=True)
    ]
    return EvaluationResult(
        accuracy=mean(values),
        accuracy_standard_error=clustered_standard_error(
            values, [connected[record.digests[0]] for record, _ in judged]
        ),
        accuracy_by_skill={skill: mean(of_skill) for skill, of_skill in sorted(by_skill.items())},
        unparsed_rate=mean([answer.status is not ParseStatus.OK for answer in parsed]),
        well_formed_rate=mean([answer.well_formed and not one for answer, one in zip(parsed, holds, strict=True)]),
        finished_rate=mean([rollout.finished for _, rollout in answered]),
        chance=mean([1.0 / len(record.options) if record.options else 0.0 for record, _ in judged]),
        constant=max(letters.values(), default=0) / len(judged),
        count=len(judged),
        not_judged=len(answered) - len(judged),
        questions=questions,
        prompts_refused=dict(Counter(question.reason for question in refused)),
        settings=settings,
        items=items,
        refused=refused,
    )
