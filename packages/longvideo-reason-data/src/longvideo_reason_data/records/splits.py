"""Which split a video belongs to: decided by a hash of its bytes alone.

The same video lands in the same split in every build, whatever it is called, in whichever order and company it comes,
and all its questions stay together. Small collections only roughly follow the fractions.
"""

import hashlib
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longvideo_reason_data.records.record import Split

Share = Annotated[float, Field(ge=0, le=1)]


class SplitFractions(BaseModel):
    """What share of the videos goes where; one third to SFT and two thirds to RL of what isn't held out.

    Attributes:
        train_sft: Share for supervised fine-tuning.
        train_rl: Share for reinforcement learning.
        held_out: Share for evaluation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_sft: Share = 0.3
    train_rl: Share = 0.6
    held_out: Share = 0.1

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train_sft + self.train_rl + self.held_out
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the fractions of the splits add up to {total}, expected 1")
        return self


def assign_split(video_digest: str, fractions: SplitFractions, *, seed: int = 0) -> Split:
    """Choose the split of a video.

    Args:
        video_digest: SHA-256 of the video's bytes, as in the records.
        fractions: Shares of the splits.
        seed: Another seed gives another assignment.
    """
    hashed = hashlib.sha256(f"split:{seed}:{video_digest}".encode()).digest()
    position = int.from_bytes(hashed[:8]) / 2**64
    if position < fractions.train_sft:
        return Split.TRAIN_SFT
    if position < fractions.train_sft + fractions.train_rl:
        return Split.TRAIN_RL
    return Split.HELD_OUT if fractions.held_out else Split.TRAIN_RL if fractions.train_rl else Split.TRAIN_SFT


def count_videos(num_videos: int, fractions: SplitFractions) -> dict[Split, int]:
    """Divide a number of videos that are yet to be made.

    Returns:
        How many for each split; together as many as asked for, none of them further than one from its share.
    """
    borders = [0, int(num_videos * fractions.train_sft), num_videos - int(num_videos * fractions.held_out), num_videos]
    splits = (Split.TRAIN_SFT, Split.TRAIN_RL, Split.HELD_OUT)
    return {split: max(0, borders[place + 1] - borders[place]) for place, split in enumerate(splits)}
