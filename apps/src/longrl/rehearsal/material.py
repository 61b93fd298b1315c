"""What a rehearsed step works on: videos of black frames, questions about them, responses of full length.

They stand for what the rehearsal can't have: footage, a sampler's answers, judgements. Everything that happens to them
is the step's own code.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from longrl.errors import AppUsageError
from longrl.rehearsal.request import RehearsedVideos
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rehearsal.recorder import StepRecorder
from mrsp_engine.rollout.base import Refusal, Rollout, SamplingSettings, WeightSource, language_weights

__all__ = ["AlternatingReward", "BlackVideo", "RehearsedSampler", "write_record"]

QUESTION = "What happens in this video, and in which order?"
OPTIONS = ("The circle leaves first.", "The square leaves first.", "Both leave together.", "Neither of them leaves.")


class BlackVideo:
    """A `Video` of black frames.

    Args:
        settings: Their size and rate.
        shown: How its frames will be chosen.
        index: Tells it from others.
    """

    def __init__(self, settings: RehearsedVideos, shown: FrameSettings, index: int) -> None:
        seconds, fps = settings.seconds, settings.fps
        if seconds is None:
            if shown.num_frames is None:
                raise AppUsageError(f"data.fps={shown.fps:g} needs the length of the videos; set --video-seconds")
            seconds, fps = float(shown.num_frames), max(fps, 1.0)
        self.frame_count = max(1, round(seconds * fps))
        self.duration_seconds = self.frame_count / fps
        self.timestamps: NDArray[np.float64] = np.arange(self.frame_count) / fps
        self.height, self.width = settings.height, settings.width
        self.content_digest = hashlib.sha256(f"black {index}".encode()).hexdigest()

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """The frames, uint8 [F, H, W, 3]."""
        return np.zeros((len(indices), self.height, self.width, 3), np.uint8)


def write_record(index: int, split: str, *, reasoning: str) -> QuestionRecord:
    """A question about a video."""
    digest = hashlib.sha256(f"black {index}".encode()).hexdigest()
    return QuestionRecord(
        question_id=f"rehearsal-{index}",
        media=(RecordMedium(path=f"{index}.mp4", digest=digest, duration_seconds=1.0),),
        split=Split(split),
        skill=Skill.TEMPORAL,
        question=QUESTION,
        options=OPTIONS,
        answer="A",
        evidence=(),
        reasoning=reasoning,
        source="rehearsal",
        license="none",
    )


class AlternatingReward:
    """1 and 0 in turn, so that every group has something to learn, on whatever ranks its responses are judged."""

    def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """See `longrl_trainer.rewards.base.BatchReward`; a response's text is its reward."""
        return [RewardResult(value=float(request.response_text), status=RewardStatus.OK) for request in requests]


@dataclass(slots=True, eq=False)
class RehearsedSampler:
    """Holds the memory of a sampler that shares the device, and answers with responses of full length.

    Attributes:
        policy: The policy, for the size of its language model.
        memory_bytes: The sampler's memory for keys and values.
        recorder: Watches the rank.
        fakes: The mode in which the memory is taken.
    """

    policy: Policy
    memory_bytes: int
    recorder: StepRecorder
    fakes: FakeTensorMode
    weight_bytes: int = 0
    _held: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        """Find out how large its copy of the language model is, while the policy's weights are whole."""
        unique = {
            id(p): p for part in (self.policy.decoder, self.policy.language_model_head) for p in part.parameters()
        }
        self.weight_bytes = sum(p.numel() for p in unique.values()) * self.policy.dtype.itemsize

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout] | Refusal]:
        """See `RolloutEngine.generate`."""
        tokens, logprobs = (1,) * sampling.max_tokens, (0.0,) * sampling.max_tokens
        responses = [
            Rollout(token_ids=tokens, logprobs=logprobs, text=str(place % 2), finished=True)
            for place in range(sampling.num_samples)
        ]
        return [list(responses) for _ in prompts]

    def update_weights(self, policy: WeightSource) -> None:
        """See `RolloutEngine.update_weights`; takes the memory again and one weight after the other."""
        if not self._held:
            self._take()
        for _ in language_weights(policy):
            pass

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`."""
        self._held = ()

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self.sleep()

    def _take(self) -> None:
        with self.fakes:
            self._held = tuple(
                torch.empty(num_bytes, dtype=torch.uint8) for num_bytes in (self.weight_bytes, self.memory_bytes)
            )
        self.recorder.assign(self._held, "sampler")
