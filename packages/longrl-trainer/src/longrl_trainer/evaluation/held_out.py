"""Evaluation while training: the same held-out questions every time, asked by the run's own sampler.

It is `longrl evaluate` without a process of its own: the same code loads, asks and judges. A run is the same with and
without it: whatever is drawn has a seed of its own, and the caller lets the sampler forget what it computed.

The model that training begins with is evaluated too, as step 0, so that curves begin there.

SFT draws no responses, so it opens a sampler for this alone, of the kind that its recipe names, which sleeps between
evaluations. Accuracies of SFT, of GRPO and of `longrl evaluate` are then comparable; a loss in their place wouldn't be.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, cast

from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.durable import write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.evaluate import Asking, ask_questions, summarise
from longrl_trainer.questions.candidates import find_control_tokens
from longrl_trainer.questions.length import LengthLimit
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import QuestionSet
from longrl_trainer.rewards.registry import WeightedReward, judged_types, load_rewards
from longrl_trainer.runs.folder import Run
from longrl_trainer.runs.judging import open_rewards
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.runs.step_meter import Stopwatch
from longrl_trainer.training.opening import open_engine
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout.base import RolloutEngine

EVALUATIONS_NAME = "evaluations"
MEASURE_NAME = "evaluation"
"""The name of what is measured in a step's line of the journal."""
JOURNALED = ("accuracy", "accuracy_standard_error", "unparsed_rate", "finished_rate", "count", "not_judged")
DEFAULT_RESPONSE_TOKENS = 1024


class HeldOutEvaluation:
    """Evaluates a model in training; all ranks make the same calls together.

    Args:
        config: The recipe.
        run: The run, whose journal says what was asked before, and whose folder gets the responses.
        policy: The model.
        rewards: What judges the answers.
        ranks: Processes that share the work.
        progress: Shows one bar for the videos, and one for the questions of each evaluation.

    Raises:
        TrainerUsageError: The split is empty, earlier evaluations asked other questions, or the store is too small.
        TrainerError: None of its questions can be used.
    """

    def __init__(
        self,
        config: SftConfig | GrpoConfig,
        run: Run,
        policy: Policy,
        rewards: Sequence[WeightedReward],
        ranks: Ranks,
        progress: ProgressDisplay,
    ) -> None:
        self._config, self._run, self._policy = config, run, policy
        self._rewards, self._ranks, self._progress = rewards, ranks, progress
        own = config.evaluation.max_response_tokens
        trained = config.max_response_tokens if isinstance(config, GrpoConfig) else DEFAULT_RESPONSE_TOKENS
        self._max_tokens = trained if own is None else own
        self._questions = self._load()
        self._digest = digest_questions(self._questions)
        lines = ranks.ask_first(run.metrics.read)
        self._has_begun = bool(lines) or run.step > 0
        before = [line[MEASURE_NAME] for line in lines if MEASURE_NAME in line]
        if before:
            last = cast(dict[str, Any], before[-1]) if isinstance(before[-1], dict) else {}
            self._require_same_as(last.get("questions_digest"), after_step=run.step)

    def is_due(self, step: int) -> bool:
        """Whether the model is evaluated after a step (counted from 1); as step 0 before them, unless that is done."""
        if step == 0:
            return not self._has_begun
        return step % self._config.evaluation.every_steps == 0

    def measure(self, sampler: RolloutEngine, *, step: int) -> dict[str, Any]:
        """Ask all questions; the sampler has the weights after this step, and keeps what it computes.

        Returns:
            What the journal says of it; all responses are in a file of the run.
        """
        if self._count_lacking(self._questions):
            self._questions = self._load()  # the store had no room for them beside those of training
            before, self._digest = self._digest, digest_questions(self._questions)
            self._require_same_as(before, after_step=step)
        config = self._config
        asking = Asking(
            system=config.data.system,
            temperature=config.evaluation.temperature,
            max_tokens=self._max_tokens,
            seed=config.seed,
        )
        with self._progress.task(f"Evaluate (step {step})", total=len(self._questions.kept)) as bar:
            outcomes = ask_questions(self._questions, self._policy, sampler, asking, self._ranks, bar)
        result = summarise(
            [question.record for question in self._questions.kept],
            outcomes,
            rewards=self._rewards,
            questions=self._questions.counts(),
            settings=config.evaluation.model_dump(mode="json"),
            control_tokens=find_control_tokens(self._policy),
            ranks=self._ranks,
        )
        values = asdict(result)
        path = self._run.folder / EVALUATIONS_NAME / f"step-{step:06d}.json"
        self._ranks.ask_first(lambda: write_json(path, values))
        measured = {name: values[name] for name in JOURNALED}
        return measured | {"prompts_refused": result.prompts_refused, "questions_digest": self._digest}

    def _load(self) -> QuestionSet:
        """Read the questions, and encode what the store lacks."""
        config = self._config
        questions = load_questions(
            config.evaluation.data_of(config.data),
            self._policy,
            progress=self._progress,
            blind=config.blind,
            judged_types=judged_types(self._rewards),
            limit=config.evaluation.num_questions,
            response_tokens=lambda _: self._max_tokens,
            sampler=config.sampler,
            ranks=self._ranks,
        )
        if lacking := self._count_lacking(questions):
            raise TrainerUsageError(
                f"model.store_bytes={config.model.store_bytes}: the embedding store has no room for all media of the "
                f"{len(questions.kept)} held-out questions beside those of a step ({lacking} are lacking); raise it, "
                "or lower evaluation.num_questions"
            )
        return questions

    def _count_lacking(self, questions: QuestionSet) -> int:
        """How many of the questions' media the store lacks, for the rank that lacks most."""
        entries, contains = list_entries(questions), self._policy.store.contains
        return max(self._ranks.exchange(sum(not contains(entry) for entry in entries)))

    def _require_same_as(self, digest: object, *, after_step: int) -> None:
        """Compare with the digest of the questions that an earlier evaluation asked."""
        if digest != self._digest:
            count = len(self._questions.kept)
            change = f"the evaluation asks other held-out questions than before ({count} of them can be asked now)"
            self._run.accept_other_questions(change, after_step=after_step)


def digest_questions(questions: QuestionSet) -> str:
    """SHA-256 over the ids of the questions that can be asked, in their order."""
    return hashlib.sha256("\0".join(question.record.question_id for question in questions.kept).encode()).hexdigest()


def list_entries(questions: QuestionSet) -> list[str]:
    """The store's entries that the questions need: embeddings, or what they are computed from."""
    embeddings = {medium.key: None for question in questions.kept for medium in question.media}
    return [questions.plans[key].key.digest if key in questions.plans else key for key in embeddings]


def check_evaluation(config: SftConfig | GrpoConfig) -> None:
    """Refuse rewards that aren't there, before a model is loaded.

    Raises:
        TrainerUsageError: The recipe names one.
    """
    if config.evaluation.every_steps:
        try:
            load_rewards(config.evaluation.rewards)
        except TrainerUsageError as error:
            raise TrainerUsageError(f"evaluation.{error}") from None


@contextmanager
def open_evaluation(
    config: SftConfig | GrpoConfig, run: Run, policy: Policy, progress: ProgressDisplay, ranks: Ranks
) -> Generator[HeldOutEvaluation | None]:
    """Load the held-out questions, with rewards that are open within the block; None if the recipe wants none.

    What `HeldOutEvaluation` raises, it raises before the first step.
    """
    if not config.evaluation.every_steps:
        yield None
        return
    rewards = load_rewards(config.evaluation.rewards)
    with ExitStack() as opened:
        opened.enter_context(open_rewards(rewards, run.folder / f"{EVALUATIONS_NAME}-rewards", ranks))
        yield HeldOutEvaluation(config, run, policy, rewards, ranks, progress)


@contextmanager
def open_sleeping_sampler(
    config: SftConfig, run: Run, policy: Policy, engine: RolloutEngine | None, ranks: Ranks
) -> Generator[RolloutEngine]:
    """The sampler of a training that draws no responses itself; `update_weights` wakes it."""
    with open_engine(
        config.sampler,
        policy,
        config.model.folder,
        engine=engine,
        max_model_len=LengthLimit.of(policy, config.sampler).tokens,
        dtype=config.dtype,
        is_trained=run.step > 0,
        ranks=ranks,
        allow_pickle_weights=config.model.allow_pickle_weights,
    ) as sampler:
        sampler.sleep()
        yield sampler


def evaluate_if_due(
    evaluation: HeldOutEvaluation | None,
    sampler: RolloutEngine | None,
    policy: Policy,
    clock: Stopwatch,
    *,
    step: int,
    is_asleep: bool = False,
) -> dict[str, Any]:
    """What a step's line in the journal says of the evaluation after it; nothing if there is none.

    The sampler is left as it was: asleep, or with nothing computed since it got its weights, which it gets again, since
    what it remembers of other prompts could change how the next ones are computed and rounded.

    Args:
        evaluation: The questions.
        sampler: The sampler; unless it is asleep it has the weights after this step.
        policy: The model.
        clock: The step's times.
        step: The step (counted from 1).
        is_asleep: Whether the sampler sleeps between evaluations.
    """
    if evaluation is None or sampler is None or not evaluation.is_due(step):
        return {}
    with clock("evaluate"):
        if is_asleep:
            sampler.update_weights(policy)
        measured = evaluation.measure(sampler, step=step)
        sampler.sleep() if is_asleep else sampler.update_weights(policy)
    return {MEASURE_NAME: measured}


def evaluate_at_the_start(
    evaluation: HeldOutEvaluation | None,
    sampler: RolloutEngine | None,
    policy: Policy,
    run: Run,
    *,
    is_asleep: bool = False,
) -> None:
    """Evaluate the model that training begins with, as step 0 of the journal; not in a run that goes on.

    The arguments are those of `evaluate_if_due`; all ranks call this together, before the first step.
    """
    clock = Stopwatch()
    if measured := evaluate_if_due(evaluation, sampler, policy, clock, step=0, is_asleep=is_asleep):
        run.metrics.append(0, measured | {"seconds": clock.seconds})


def accuracy_in(line: Mapping[str, Any]) -> float | None:
    """The accuracy on held-out questions that a step's line in the journal has; None if there is none."""
    return line[MEASURE_NAME]["accuracy"] if MEASURE_NAME in line else None
