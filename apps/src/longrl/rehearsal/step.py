"""One rank's part of a rehearsed step: the functions of which the training loops consist, in their order.

The loops themselves (`longrl_trainer.sft`, `longrl_trainer.grpo`) also own the run's folder and its dataset, which a
rehearsal doesn't have.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch._subclasses.fake_tensor import FakeTensorMode

from longrl.errors import AppUsageError
from longrl.rehearsal.material import AlternatingReward, RehearsedSampler
from longrl.rehearsal.opening import LEARNING_RATE, Opening
from longrl.rehearsal.request import RehearsedStage, RehearsedVideos, StepLimits
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.grpo import create_update
from longrl_trainer.questions.length import LengthLimit, PromptLengths
from longrl_trainer.questions.question import QuestionSet, build_question_prompt
from longrl_trainer.questions.step_media import open_step
from longrl_trainer.rewards.registry import WeightedReward
from longrl_trainer.rl.groups import judge_groups
from longrl_trainer.rl.sampling import draw_responses
from longrl_trainer.sft import pack_questions, take_gradients
from longrl_trainer.training.opening import check_sharding, open_engine, share_rows
from longrl_trainer.training.optimizer import TrainingOptimizer
from longrl_trainer.training.ranks import Ranks, join_ranks
from longrl_trainer.training.saving import open_messages
from longrl_trainer.training.scoring import RowScoring
from longrl_trainer.training.shards import PlannedFiles, plan_writing
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.rehearsal.recorder import StepRecorder

__all__ = ["CHECKPOINT_STAGE", "RankStep", "StepFacts"]

CHECKPOINT_STAGE = "checkpoint"
"""The stage in which ranks agree on what each writes of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What the planner needs to know of the step, and what can't be seen in memory.

    Attributes:
        prompt_tokens: Tokens of a prompt.
        layout: That row.
        num_frames: Frames of a video; 0 without one.
        frame_pixels: Pixels of a frame as the encoder sees it.
        group_size: Responses of a group.
        response_tokens: Tokens of a response.
        sequence_ranks: Ranks that share a row.
        is_sharded: Whether weights are.
        lora_rank: Rank of the adapters; 0 if the model's own weights are trained.
        item_bytes: Bytes of a number in the model's computations.
        has_reference: Whether there is a reference model.
        num_rows: Rows that were rehearsed.
        checkpoint: What this rank writes of a checkpoint.
        too_long: Why training drops such questions; None if it doesn't.
    """

    prompt_tokens: int
    layout: PackedLayout
    num_frames: int
    frame_pixels: int
    group_size: int
    response_tokens: int
    sequence_ranks: int
    is_sharded: bool
    lora_rank: int
    item_bytes: int
    has_reference: bool
    num_rows: int
    checkpoint: PlannedFiles
    too_long: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """The program of every rank; see `mrsp_engine.rehearsal.processes.rehearse_ranks`.

    Attributes:
        stage: What is trained.
        folder: The checkpoint folder without weights.
        scratch: A folder for stores that keep nothing.
        videos: The videos.
        limits: How much is rehearsed.
        memory_bytes: Memory of a device.
    """

    stage: RehearsedStage
    folder: Path
    scratch: Path
    videos: RehearsedVideos
    limits: StepLimits
    memory_bytes: float

    def __call__(self, recorder: StepRecorder, fakes: FakeTensorMode) -> StepFacts:
        """Rehearse this process's rank."""
        model = self.stage.config.model.model_copy(update={"folder": self.folder, "device": "cpu"})
        config = self.stage.config.model_copy(update={"model": model})
        ranks = join_ranks(config.model, config.parallel)
        check_sharding(config, ranks)
        if config.activation_checkpointing == "offload":
            raise AppUsageError(
                "activation_checkpointing=\"offload\" can't be rehearsed, because host memory isn't told apart; "
                'set "recompute" or "none"'
            )
        opening = Opening(
            recorder=recorder,
            fakes=fakes,
            ranks=ranks,
            scratch=self.scratch,
            videos=self.videos,
            limits=self.limits,
            memory_bytes=self.memory_bytes,
        )
        rank = _Rank(opening=opening, recorder=recorder, fakes=fakes, ranks=ranks)
        if isinstance(config, GrpoConfig):
            return rank.rehearse_grpo(config)
        return rank.rehearse_sft(config)


@dataclass(slots=True, kw_only=True)
class _Rank:
    opening: Opening
    recorder: StepRecorder
    fakes: FakeTensorMode
    ranks: Ranks

    def rehearse_grpo(self, config: GrpoConfig) -> StepFacts:
        policy = self.opening.open_policy(config)
        first, _ = self.opening.prepare(policy, config, 1)
        longest = GroupLengths(first.longest_prompt, (config.max_response_tokens,) * config.group_size)
        ranks = share_rows(config, policy, self.ranks, [longest] * config.prompts_per_step)
        questions, videos = self.opening.prepare(policy, config, self._count_rows(config.prompts_per_step, ranks))
        cache_bytes = config.sampler.memory_bytes if config.sampler.engine == "vllm" else 0
        sampler = RehearsedSampler(policy, cache_bytes, self.recorder, self.fakes)
        optimizer = self.opening.open_training(policy, config)
        update = create_update(
            config, policy, optimizer, ranks, lambda config, _: self.opening.open_reference(config, videos)
        )
        longest_tokens = questions.longest_prompt + config.max_response_tokens
        with ExitStack() as opened:
            with self.recorder.stage("sync", "sampler"):
                engine = opened.enter_context(
                    open_engine(
                        config.sampler,
                        policy,
                        config.model.folder,
                        engine=sampler,
                        max_model_len=longest_tokens,
                        dtype=config.dtype,
                        ranks=ranks,
                    )
                )
            with self.recorder.stage("encode", "encoding", has_numbers=True):
                self.opening.encode(policy, videos, ranks)
                (asked,), media = open_step(policy, [questions.kept], questions.plans, ranks)
            prompts = [build_question_prompt(policy, question, config.data.system) for question in asked]
            with self.recorder.stage("rollout", "sampler"), media.lend():
                drawn = draw_responses(engine, prompts, config, step=0)
                engine.sleep()
            answered = [
                (question, prompt, cast(Any, outcome))
                for question, prompt, outcome in zip(asked, prompts, drawn, strict=True)
            ]
            reward = WeightedReward(name="rehearsal", reward=AlternatingReward(), weight=1.0)
            groups = judge_groups(answered, rewards=[reward], objective=update.objective, ranks=ranks)
            with self.recorder.stage("update"):
                update.run(groups, media, LEARNING_RATE)
            with self.recorder.stage("sync", "sampler"):
                engine.update_weights(policy)
        return self._facts(
            policy,
            ranks,
            layout=PackedLayout((longest,)),
            too_long=self._find_excess(policy, config, questions),
            questions=questions,
            plans=[video.plan for video in videos],
            has_reference=update.reference not in (None, policy),
            checkpoint=self._plan_checkpoint(optimizer),
        )

    def rehearse_sft(self, config: SftConfig) -> StepFacts:
        policy = self.opening.open_policy(config)
        per_row = config.questions_per_row
        first, _ = self.opening.prepare(policy, config, 1, questions_per_video=per_row)
        optimizer = self.opening.open_training(policy, config)
        longest = pack_questions(policy, first.kept, config).lengths
        ranks = share_rows(config, policy, self.ranks, [longest] * config.rows_per_step)
        num_rows = self._count_rows(config.rows_per_step, ranks)
        questions, videos = self.opening.prepare(policy, config, num_rows, questions_per_video=per_row)
        rows = [questions.kept[start : start + per_row] for start in range(0, len(questions.kept), per_row)]
        scoring = RowScoring.of(config, policy, ranks)
        with self.recorder.stage("encode", "encoding", has_numbers=True):
            self.opening.encode(policy, videos, ranks)
            shown, media = open_step(policy, rows, questions.plans, ranks)
        groups = [pack_questions(policy, of_video, config) for of_video in shown]
        with self.recorder.stage("update"):
            with media.lend(with_gradients=True):
                take_gradients(policy, groups, scoring)
            media.backward()
            ranks.sum_gradients(policy)
            optimizer.step(LEARNING_RATE)
        return self._facts(
            policy,
            ranks,
            layout=PackedLayout((longest,)),
            too_long=self._find_excess(policy, config, questions),
            questions=questions,
            plans=[video.plan for video in videos],
            has_reference=False,
            checkpoint=self._plan_checkpoint(optimizer),
        )

    def _find_excess(self, policy: Policy, config: SftConfig | GrpoConfig, questions: QuestionSet) -> str | None:
        """Why training drops a question that is as long as these; the sampler's room only with all layers."""
        sampler, limits = None, self.opening.limits
        response_tokens = limits.response_tokens
        if isinstance(config, GrpoConfig):
            sampler, response_tokens = config.sampler if limits.num_layers is None else None, config.max_response_tokens
        lengths = PromptLengths(policy, config.data, LengthLimit.of(policy, sampler), lambda _: response_tokens)
        problem = lengths.find_problem(questions.kept[0].record, questions.kept[0].media)
        return None if problem is None else problem.detail

    def _plan_checkpoint(self, optimizer: TrainingOptimizer) -> PlannedFiles:
        with self.recorder.stage(CHECKPOINT_STAGE):
            return plan_writing(optimizer.state_tensors(), group=open_messages(self.ranks))

    def _count_rows(self, rows_of_step: int, ranks: Ranks) -> int:
        return min(rows_of_step, self.opening.limits.num_rows or 2 * ranks.num_data_ranks)

    def _facts(
        self,
        policy: Policy,
        ranks: Ranks,
        *,
        layout: PackedLayout,
        too_long: str | None,
        questions: QuestionSet,
        plans: Sequence[EncodingPlan],
        has_reference: bool,
        checkpoint: PlannedFiles,
    ) -> StepFacts:
        group = layout.groups[0]
        return StepFacts(
            prompt_tokens=group.prompt,
            layout=layout,
            num_frames=len(plans[0].frame_indices) if plans else 0,
            frame_pixels=plans[0].layout.height * plans[0].layout.width if plans else 1,
            group_size=len(group.branches),
            response_tokens=max(group.branches),
            sequence_ranks=ranks.sequence_ranks,
            is_sharded=policy.is_sharded,
            lora_rank=0 if policy.adapters is None else policy.adapters.rank,
            item_bytes=policy.dtype.itemsize,
            has_reference=has_reference,
            num_rows=len({question.media for question in questions.kept}),
            checkpoint=checkpoint,
            too_long=too_long,
        )
