"""The responses of one step: questions are taken and asked, and responses judged, until enough teach something.

Usually that is once. With dynamic sampling (`extra_rounds`) questions whose responses all have the same reward are
replaced by the next ones of the run's order, up to a number of rounds. What is taken depends on the rewards alone, and
a step's line in the journal says how often; so a run that goes on finds its place again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerError
from longrl_trainer.objectives.base import Objective
from longrl_trainer.questions.candidates import find_control_tokens
from longrl_trainer.questions.feed import QuestionFeed
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.questions.step_media import count_frames_encoded, open_step
from longrl_trainer.rewards.registry import WeightedReward
from longrl_trainer.rl.groups import RolloutGroup, choose_groups, judge_groups
from longrl_trainer.rl.temporal_contrast import TemporalContrast, contrast_groups
from longrl_trainer.runs.step_meter import Stopwatch
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledStep:
    """The responses of a step.

    Attributes:
        groups: All groups that were judged.
        trained: Those that are trained on.
        media: Their media.
        refusals: Prompts that the sampler refused.
        num_rounds: How often questions were taken.
        frames_stored: Frames encoded for the store, which later steps use too.
        contrasts: Of the questions that were asked with shuffled frames too.
    """

    groups: list[RolloutGroup]
    trained: list[RolloutGroup]
    media: StepMedia
    refusals: list[Refusal]
    num_rounds: int
    frames_stored: int
    contrasts: list[TemporalContrast]


def sample_step(
    feed: QuestionFeed,
    sampler: RolloutEngine,
    policy: Policy,
    rewards: Sequence[WeightedReward],
    objective: Objective,
    config: GrpoConfig,
    ranks: Ranks,
    clock: Stopwatch,
    *,
    step: int,
) -> SampledStep:
    """Take the step's questions, draw and judge their responses; again, if the recipe says so and too few have spread.

    Raises:
        TrainerError: The sampler refused every prompt.
    """
    groups: list[RolloutGroup] = []
    media: list[StepMedia] = []
    refusals: list[Refusal] = []
    frames_stored, extra_rounds = 0, config.parts.extra_rounds
    while len(media) <= extra_rounds and sum(group.has_spread for group in groups) < config.prompts_per_step:
        with clock("encode"):
            frames_before = count_frames_encoded(policy)
            taken = feed.take(step)
            frames_stored += count_frames_encoded(policy) - frames_before
            (asked,), of_round = open_step(policy, [[question for (question,) in taken.rows]], taken.plans, ranks)
        prompts = [build_question_prompt(policy, question, config.data.system) for question in asked]
        with clock("rollout"), of_round.lend():
            drawn = draw_responses(sampler, prompts, config, step=step, round_number=len(media))
        with clock("reward"):
            answered = [
                (question, prompt, outcome)
                for question, prompt, outcome in zip(asked, prompts, drawn, strict=True)
                if not isinstance(outcome, Refusal)
            ]
            groups += judge_groups(
                answered,
                rewards=rewards,
                objective=objective,
                ranks=ranks,
                control_tokens=find_control_tokens(policy),
            )
            refusals += [outcome for outcome in drawn if isinstance(outcome, Refusal)]
        media.append(of_round)
    trained = choose_groups(groups, config.prompts_per_step, objective) if extra_rounds and groups else groups
    names = {medium.key for group in trained for medium in group.prompt.media}
    joined, contrasts = StepMedia.joined(media, names), list[TemporalContrast]()
    if config.parts.temporal_weight:
        with clock("contrast"), joined.lend():
            trained, contrasts, refused = contrast_groups(trained, sampler, policy, rewards, config, ranks, step=step)
            refusals += refused
    with clock("rollout"):
        sampler.sleep()
    if not groups:
        raise TrainerError(f"the sampler refused every prompt of this step: {refusals[0].message}")
    return SampledStep(
        groups=groups,
        trained=trained,
        media=joined,
        refusals=refusals,
        num_rounds=len(media),
        frames_stored=frames_stored,
        contrasts=contrasts,
    )


def draw_responses(
    engine: RolloutEngine, prompts: Sequence[Prompt], config: GrpoConfig, *, step: int, round_number: int = 0
) -> list[list[Rollout] | Refusal]:
    """G responses per prompt, or a refusal; the same when the step is repeated. A step may draw in several rounds."""
    settings = SamplingSettings(
        temperature=config.temperature,
        max_tokens=config.max_response_tokens,
        num_samples=config.group_size,
        seed=derive_seed(config.seed, "rollout", step, *([round_number] if round_number else [])),
    )
    return engine.generate(prompts, settings)
