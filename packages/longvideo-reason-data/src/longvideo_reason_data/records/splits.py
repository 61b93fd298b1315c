"""The split of a video: determined only by a hash of its bytes.

The same video gets the same split in every build, whatever its name, the order and the other videos, and all its
questions stay together. Where questions are about several media, all connected media stay together too, under the hash
of one of them. Small collections only roughly follow the fractions.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longvideo_reason_data.records.record import QuestionRecord, Split

Share = Annotated[float, Field(ge=0, le=1)]


class SplitFractions(BaseModel):
    """Shares of the splits; of what isn't held out, one third goes to SFT and two thirds to RL.

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


def connect_media(shown_together: Iterable[Sequence[str]]) -> dict[str, str]:
    """Find the media that are connected by questions about several of them, directly or transitively.

    Args:
        shown_together: The digests of the media of each question.

    Returns:
        For each digest the alphabetically first of those that it is connected with.
    """
    parents: dict[str, str] = {}

    def root_of(digest: str) -> str:
        while parents[digest] != digest:
            parents[digest] = parents[parents[digest]]
            digest = parents[digest]
        return digest

    for digests in shown_together:
        parents |= {digest: digest for digest in digests if digest not in parents}
        roots = sorted({root_of(digest) for digest in digests})
        for root in roots[1:]:
            parents[root] = roots[0]
    return {digest: root_of(digest) for digest in parents}


def assign_splits(
    records: Sequence[QuestionRecord], fractions: SplitFractions, *, seed: int = 0
) -> list[QuestionRecord]:
    """Put questions into splits so that no medium is in two; see `assign_split`."""
    connected = connect_media(record.digests for record in records)
    splits = {first: assign_split(first, fractions, seed=seed) for first in connected.values()}
    return [record.model_copy(update={"split": splits[connected[record.digests[0]]]}) for record in records]


def count_videos(num_videos: int, fractions: SplitFractions) -> dict[Split, int]:
    """Divide a number of future videos among the splits.

    Returns:
        The number for each split; the total is as requested, and each differs by at most one from its share.
    """
    borders = [0, int(num_videos * fractions.train_sft), num_videos - int(num_videos * fractions.held_out), num_videos]
    splits = (Split.TRAIN_SFT, Split.TRAIN_RL, Split.HELD_OUT)
    return {split: max(0, borders[place + 1] - borders[place]) for place, split in enumerate(splits)}
