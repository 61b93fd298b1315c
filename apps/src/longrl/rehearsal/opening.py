"""How a rehearsed step begins: models without weights, an optimizer that has stepped once, questions about videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from longrl.rehearsal.material import BlackVideo, write_record
from longrl.rehearsal.request import RehearsedVideos, StepLimits
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.questions.frames import frame_budget, plan_frames, resolve_frames
from longrl_trainer.questions.question import Question, QuestionSet, build_question_prompt
from longrl_trainer.questions.step_media import storing, train_parts
from longrl_trainer.training.opening import TORCH_DTYPES, create_optimizer, open_training_policy, save_memory
from longrl_trainer.training.optimizer import TrainingOptimizer
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.encoding.parallel import PlannedMedium, encode_media
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.checkpoints import without_weights
from mrsp_engine.rehearsal.recorder import StepRecorder
from mrsp_engine.rehearsal.store import RehearsedStore, StoredRows
from mrsp_engine.row_scorer import row_scorer_of

__all__ = ["LEARNING_RATE", "Opening"]

LEARNING_RATE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Opens what one rank needs.

    Attributes:
        recorder: Watches the rank.
        fakes: The mode in which weights are made.
        ranks: All ranks.
        scratch: A folder for stores that keep nothing.
        videos: The videos.
        limits: How much is rehearsed.
        memory_bytes: Memory of a device.
    """

    recorder: StepRecorder
    fakes: FakeTensorMode
    ranks: Ranks
    scratch: Path
    videos: RehearsedVideos
    limits: StepLimits
    memory_bytes: float

    def open_policy(self, config: SftConfig | GrpoConfig) -> Policy:
        """The policy at the beginning of training, with weights that have no numbers."""
        with self.recorder.stage("load", "weights"):
            policy = open_training_policy(config, policy=self._load(config))
            self._know(policy)
        return policy

    def _load(self, config: SftConfig | GrpoConfig) -> Policy:
        folder = self.scratch / f"store-{self.ranks.rank}"
        # What a rank encodes is like what the others encode; but how large features are, each has to see for itself.
        is_encoding = self.ranks.is_first or config.train_vision == "projector"
        store = RehearsedStore(folder, self.recorder, self.fakes, is_encoding=is_encoding)
        with without_weights(lambda: self.fakes):
            policy = load_policy(config.model.folder, dtype=TORCH_DTYPES[config.dtype], store=store, device="cpu")
        policy.rehearsed_memory_bytes = self.memory_bytes
        return policy

    def _know(self, policy: Policy) -> None:
        scorer = row_scorer_of(policy)
        self.recorder.know(scorer, policy.decoder, policy.language_model_head)
        self.recorder.assign((*policy.model.parameters(), *policy.model.buffers()), "weights")

    def open_training(self, policy: Policy, config: SftConfig | GrpoConfig) -> TrainingOptimizer:
        """Weights and optimizer as they are after the first step, whose moments only then exist."""
        train_parts(policy, config)
        with self.recorder.stage("load", "weights"):
            save_memory(policy, config, self.ranks)
            self.recorder.assign((*policy.model.parameters(), *policy.model.buffers()), "weights")
        with self.recorder.stage("load", "optimizer"):
            optimizer = create_optimizer(policy, config)
        with self.recorder.stage("load"):
            for parameter in policy.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            optimizer.step(LEARNING_RATE)
        return optimizer

    def open_reference(self, config: GrpoConfig, videos: Sequence[PlannedMedium]) -> Policy:
        """The starting model, whose store knows the same videos."""
        with self.recorder.stage("load", "reference"):
            reference = self._load(config)
            reference.model.requires_grad_(False)
            self._know(reference)
            save_memory(reference, config, self.ranks)
            self._expect(reference, videos)
            self.recorder.assign((*reference.model.parameters(), *reference.model.buffers()), "reference")
        return reference

    def prepare(
        self, policy: Policy, config: SftConfig | GrpoConfig, num_videos: int, *, questions_per_video: int = 1
    ) -> tuple[QuestionSet, list[PlannedMedium]]:
        """Questions about as many videos, and how these are encoded."""
        data = resolve_frames(config.data, config.model.folder)
        words = " a" * self.limits.response_tokens
        tokens = len(policy.tokenise(words))
        reasoning = words[: len(words) * self.limits.response_tokens // max(1, tokens)]
        videos: list[PlannedMedium] = []
        questions: list[Question] = []
        plans: dict[str, EncodingPlan] = {}
        with storing(policy, config):
            for index in range(num_videos):
                shown: tuple[Any, ...] = ()
                if policy.encoder is not None and not config.blind:
                    video = BlackVideo(self.videos, data, index)
                    plan = policy.encoder.plan(video, plan_frames(video, data), budget=frame_budget(data))
                    videos.append(PlannedMedium(video=video, plan=plan))
                    shown = (plan.reference,)
                    if plan.key.content != "embeddings":
                        plans[plan.reference.key] = plan
                for _ in range(questions_per_video):
                    record = write_record(index, config.data.split, reasoning=reasoning)
                    questions.append(Question(record=record, media=shown))
        longest = max(build_question_prompt(policy, q, config.data.system).length for q in questions[:1])
        return QuestionSet(kept=tuple(questions), dropped=(), plans=plans, longest_prompt=longest), videos

    def encode(self, policy: Policy, videos: Sequence[PlannedMedium], ranks: Ranks) -> None:
        """Encode the first video by all ranks; the others are like it."""
        if policy.encoder is None or not videos:
            return
        encode_media(policy.encoder, videos[:1], policy.store, ranks.group)
        self._expect(policy, videos)

    def _expect(self, policy: Policy, videos: Sequence[PlannedMedium]) -> None:
        store, encoder = policy.store, policy.encoder
        if encoder is None or not videos:
            return
        assert isinstance(store, RehearsedStore)
        seen = store.disk.written.get(videos[0].plan.key.digest)
        for video in videos:
            plan, layout = video.plan, video.plan.layout
            if plan.key.content == "frames":
                row, dtype = (layout.frames_per_group, layout.height, layout.width, 3), torch.uint8
            elif plan.key.content == "features" and seen is not None:
                row, dtype = seen.row_shape, seen.dtype
            else:
                row, dtype = (encoder.embedding_width,), policy.dtype
            store.expect(plan.key, StoredRows(num_rows=plan.num_rows, row_shape=row, dtype=dtype))
