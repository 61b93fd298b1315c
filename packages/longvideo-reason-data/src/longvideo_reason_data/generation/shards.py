"""The result of each video of a build: one JSON file per video, written when all its questions are settled.

So a build only keeps the videos in progress in memory, and an interrupted or restarted build skips what is settled. A
shard is valid only for the same video, subtitles, settings, prompts and models, and is not used if something failed
temporarily: then the video is processed again, with every paid answer taken from the journal.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.generation.sources import SourceVideo
from longvideo_reason_data.records.drafts import QuestionDraft
from longvideo_reason_data.records.folder import SHARDS_NAME
from longvideo_reason_data.records.record import Skill

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Dropped(BaseModel):
    """An item that isn't in the dataset, and the reason.

    Attributes:
        stage: Where it was dropped: "videos", "segments" or "questions".
        item: Identifies the item.
        reason: The reason, as one word that can be counted.
        detail: What exactly happened, in one line.
    """

    model_config = _STRICT

    stage: str
    item: str
    reason: str
    detail: str


class DescribedSegment(BaseModel):
    """The description of a segment, and what is said in it."""

    model_config = _STRICT

    number: int
    start_seconds: float
    end_seconds: float
    caption: str
    speech: str


class DraftedQuestion(BaseModel):
    """A question that passed the checks, its options in the order in which they were written."""

    model_config = _STRICT

    question_id: str
    skill: Skill
    draft: QuestionDraft


class VideoShard(BaseModel):
    """The result of a video.

    Attributes:
        version: Version of this format.
        config_digest: Digest of everything except the video that affects it.
        source: The video.
        num_questions: Number of questions requested.
        num_requests: Number of requests, in this run or an earlier one.
        is_settled: Whether asking again would change nothing.
        segments: Segments that were described.
        questions: Questions that passed, by id.
        dropped: Dropped segments and questions, by stage and name.
    """

    model_config = _STRICT

    version: Literal[1] = 1
    config_digest: str
    source: SourceVideo
    num_questions: int
    num_requests: int
    is_settled: bool
    segments: tuple[DescribedSegment, ...]
    questions: tuple[DraftedQuestion, ...]
    dropped: tuple[Dropped, ...]


class ShardFolder:
    """The shards of a build.

    Args:
        output: The dataset's folder.
        config_digest: Digest of everything except the video that affects a shard.
    """

    def __init__(self, output: Path, config_digest: str) -> None:
        self._folder, self._config_digest = ForeignFolder(output, error=DataError), config_digest

    def write(self, shard: VideoShard) -> None:
        """Write a shard.

        Raises:
            DataError: When it can't be written.
        """
        write_text_atomic(self._folder.place(_name(shard.source)), shard.model_dump_json() + "\n")

    def find(self, source: SourceVideo) -> VideoShard | None:
        """Return the shard of a video, or None if there is no valid one.

        Raises:
            DataError: When something that is no regular file has its name.
        """
        if not self._folder.has(_name(source)):
            return None
        try:
            shard = VideoShard.model_validate_json(self._folder.read_bytes(_name(source)))
        except ValidationError:
            return None  # another version or damaged; its answers are in the journal
        same = shard.config_digest == self._config_digest and _identity(shard.source) == _identity(source)
        return shard.model_copy(update={"source": source}) if same and shard.is_settled else None

    def read(self, source: SourceVideo) -> VideoShard:
        """Return the shard that this build wrote for a video.

        Raises:
            DataError: When it isn't there or can't be read.
        """
        content = self._folder.read_bytes(_name(source))
        try:
            return VideoShard.model_validate_json(content).model_copy(update={"source": source})
        except ValidationError as error:
            path = self._folder.root / _name(source)
            raise DataError(f"{path}: changed while the build was running; run it again") from error


def _name(source: SourceVideo) -> str:
    return f"{SHARDS_NAME}/{source.digest}.json"


def _identity(source: SourceVideo) -> dict[str, object]:
    """What affects the shard of a video; not its name or that of its subtitles."""
    return source.model_dump(exclude={"path", "speech_origin", "speech_problem"})


def make_dropped(stage: str, item: str, reason: str, detail: str = "") -> Dropped:
    """Create the entry of a dropped item; the detail is cut to one line."""
    return Dropped(stage=stage, item=item, reason=reason, detail=visible(" ".join(detail.split())))
