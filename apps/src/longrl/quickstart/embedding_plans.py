"""Encoding ahead of use, and an independent count of what had to be encoded.

The engine counts what it encoded. `count_plans` counts the different pairs of video and frames, and the sounds, from
records and files only, so that the two can be compared.
"""

from collections.abc import Iterable, Sequence

from longrl_trainer.config.sections import DataSection, records_path
from longrl_trainer.questions.frames import plan_frames
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.runs.progress import ProgressDisplay
from longvideo_reason_data.media.image_file import FramesFile
from longvideo_reason_data.records.medium import open_medium
from longvideo_reason_data.records.record import Split, list_media, read_records
from mrsp_engine.families.base import Policy


def encode_splits(policy: Policy, plans: Sequence[DataSection], progress: ProgressDisplay) -> int:
    """Put every video of every plan into the policy's store; returns the tokens of the longest prompt."""
    longest = 0
    for data in plans:
        questions = load_questions(data, policy, progress=progress)
        longest = max(longest, questions.longest_prompt)
    return longest


def count_plans(plans: Iterable[DataSection]) -> int:
    """Number of different (video, frames) pairs, and of sounds that are heard."""
    pairs: set[tuple[str, tuple[int, ...]]] = set()
    heard: set[str] = set()
    files: dict[str, FramesFile] = {}
    for data in plans:
        of_split = (record for record in read_records(records_path(data)) if record.split == Split(data.split))
        for digest, medium in list_media(of_split).items():
            if digest not in files:
                files[digest] = open_medium(data.dataset, medium)
            if data.pictures:
                pairs.add((digest, plan_frames(files[digest], data)))
            if data.sound:
                heard.add(digest)
    return len(pairs) + len(heard)
