"""From a dataset's split to questions whose videos are encoded: what every stage starts with.

Each video is opened once per frame plan, by one rank, and checked against the digest its records carry; its frames are
encoded by all ranks together, unless the embedding store holds them. A question whose video can't be used is dropped
with a reason; nothing takes its place. Kept and dropped questions together are always all questions of the split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from longrl_trainer.config import DataSection
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.media import OpenMedium, opener_for
from longrl_trainer.parallel import ALONE, Ranks
from longrl_trainer.progress import ProgressDisplay
from longrl_trainer.runs import records_path
from longvideo_reason_data.answers import format_prompt, format_response, parse_response
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records import QuestionRecord, Split, read_records, resolve_video
from mrsp_engine.errors import EngineError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.frame_encoder import EncodingPlan
from mrsp_engine.media import MediaReference
from mrsp_engine.prompts import Prompt
from mrsp_engine.vision import Medium as Frames
from mrsp_engine.vision import UnusableMedium, encode_media

# A family sets a medium between a few tokens of its own.
FRAMING_TOKENS = 16
# Enough to divide the files evenly among ranks that open them, few enough for a moving progress bar.
FILES_PER_RANK = 4


class DropReason(StrEnum):
    """Why a question was left out."""

    UNREADABLE_VIDEO = "unreadable_video"
    """Missing, outside the dataset, not a video, or damaged."""
    DIGEST_MISMATCH = "digest_mismatch"
    """The file is not the one the question was written for."""
    OPEN_ENDED = "open_ended"
    """The question has no options, and this stage needs a letter to compare with."""
    CONTROL_TOKEN = "control_token"
    """A text contains a control token of the model."""
    MALFORMED_RESPONSE = "malformed_response"
    """Reasoning and answer don't make a well-formed response to learn from; the reasoning may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A record and its encoded video; no media when it is asked blind."""

    record: QuestionRecord
    media: tuple[MediaReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedQuestion:
    """A question that was left out."""

    question_id: str
    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedMedium:
    """Why no question about a file can be used."""

    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """The questions of a split."""

    kept: tuple[Question, ...]
    dropped: tuple[DroppedQuestion, ...]
    plans: Mapping[str, EncodingPlan]
    """How media are encoded whose embeddings aren't stored, by the key of their references."""

    def counts(self) -> dict[str, Any]:
        """How many there were: `input` = `kept` + the sum of `dropped` over its reasons."""
        return {
            "input": len(self.kept) + len(self.dropped),
            "kept": len(self.kept),
            "dropped": dict(sorted(Counter(str(question.reason) for question in self.dropped).items())),
        }

    def report(self) -> dict[str, Any]:
        """The counts, and every dropped question with its reason."""
        return {**self.counts(), "dropped_questions": [asdict(question) for question in self.dropped]}


def load_questions(
    data: DataSection,
    policy: Policy,
    *,
    progress: ProgressDisplay,
    blind: bool = False,
    choice_only: bool = False,
    learn_responses: bool = False,
    limit: int | None = None,
    ranks: Ranks = ALONE,
) -> QuestionSet:
    """Read a split and encode its videos.

    Args:
        data: Which questions and how many frames.
        policy: Encodes what its store lacks.
        progress: Shows one bar over the videos.
        blind: Leave the videos alone; every question comes without media.
        choice_only: Drop questions without options.
        learn_responses: Drop questions whose reasoning and answer are no well-formed response.
        limit: Take at most this many questions, spread evenly over the split.
        ranks: Processes that share the work; all call this together and get the same.
    """
    records = [record for record in read_records(records_path(data)) if record.split == Split(data.split)]
    if not records:
        raise TrainerUsageError(f"{data.dataset} has no question in the split {data.split!r}; set another `data.split`")
    if limit is not None and limit < len(records):
        records = [records[index * len(records) // limit] for index in range(limit)]
    control_tokens = tuple(str(token) for token in policy.tokenizer.added_tokens_decoder.values() if token.special)
    candidates: list[QuestionRecord] = []
    dropped: list[DroppedQuestion] = []
    for record in records:
        problem = _find_problem(record, control_tokens, choice_only=choice_only, learn_responses=learn_responses)
        if problem is None:
            candidates.append(record)
        else:
            dropped.append(DroppedQuestion(question_id=record.question_id, reason=problem[0], detail=problem[1]))
    if blind:
        kept = [Question(record=record, media=()) for record in candidates]
        plans: dict[str, EncodingPlan] = {}
    else:
        kept, unusable, plans = _encode_videos(data, policy, candidates, progress, ranks)
        dropped += unusable
    if not kept:
        raise TrainerError(
            f"none of the {len(records)} questions of {data.dataset} can be used; the first: "
            f"{dropped[0].question_id}: {dropped[0].detail}"
        )
    return QuestionSet(kept=tuple(kept), dropped=tuple(dropped), plans=plans)


def _find_problem(
    record: QuestionRecord, control_tokens: Sequence[str], *, choice_only: bool, learn_responses: bool
) -> tuple[DropReason, str] | None:
    """Say what makes the texts of a record useless for a stage, if anything does."""
    if choice_only and not record.options:
        return DropReason.OPEN_ENDED, "it has no options"
    response = format_response(record.reasoning, record.answer) if learn_responses else ""
    text = format_prompt(record.question, record.options) + response
    found = next((token for token in control_tokens if token in text), None)
    if found is not None:
        return DropReason.CONTROL_TOKEN, f"its text contains {found!r}, a control token of the model"
    if learn_responses and not parse_response(response, record.options).well_formed:
        return DropReason.MALFORMED_RESPONSE, "its reasoning is empty, or holds a tag of the answer grammar"
    return None


def build_question_prompt(policy: Policy, question: Question, system: str | None) -> Prompt:
    """The prompt of one question, as sampler and trainer both use it."""
    record = question.record
    return policy.build_prompt(format_prompt(record.question, record.options), question.media, system=system)


def longest_prompt(policy: Policy, questions: Sequence[Question], system: str | None) -> int:
    """Tokens of the longest prompt, or a few more, without laying out any long one."""
    return max(
        build_question_prompt(policy, replace(question, media=()), system).length
        + sum(medium.num_tokens + FRAMING_TOKENS for medium in question.media)
        for question in questions
    )


def _encode_videos(
    data: DataSection, policy: Policy, records: Sequence[QuestionRecord], progress: ProgressDisplay, ranks: Ranks
) -> tuple[list[Question], list[DroppedQuestion], dict[str, EncodingPlan]]:
    """Encode every distinct video of the records; questions keep the records' order.

    Returns:
        Questions, what was dropped, and the plans of media of which the store doesn't have the embeddings.
    """
    files = list({(record.video_path, record.video_digest): record for record in records}.items())
    outcomes: dict[tuple[str, str], tuple[MediaReference, ...] | DroppedMedium] = {}
    plans: dict[str, EncodingPlan] = {}
    opener = opener_for(policy)
    batch_size = 1 if ranks.group is None else FILES_PER_RANK * ranks.size
    with progress.task(f"Videos ({data.split})", total=len(files)) as bar:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            opened = ranks.divide(
                [record for _, record in batch],
                lambda share: [_open_medium(data, policy, record, opener) for record in share],
            )
            frames = _frames_among(opened)
            encoded = _encode_together(policy, opened, frames, ranks)
            outcomes |= {file: outcome for (file, _), outcome in zip(batch, encoded, strict=True)}
            plans |= {item.plan.reference.key: item.plan for item in frames if item.plan.key.content != "embeddings"}
            bar.advance(len(batch))
    kept: list[Question] = []
    dropped: list[DroppedQuestion] = []
    for record in records:
        outcome = outcomes[record.video_path, record.video_digest]
        if isinstance(outcome, DroppedMedium):
            dropped.append(
                DroppedQuestion(question_id=record.question_id, reason=outcome.reason, detail=outcome.detail)
            )
        else:
            kept.append(Question(record=record, media=outcome))
    return kept, dropped, plans


def _open_medium(
    data: DataSection, policy: Policy, record: QuestionRecord, opener: OpenMedium
) -> tuple[MediaReference | Frames, ...] | DroppedMedium:
    """What one file shows, or why it can't be used."""
    try:
        medium = opener(resolve_video(data.dataset, record), policy)
        if medium.content_digest != record.video_digest:
            detail = f"{record.video_path} is another file than the question was written for"
            return DroppedMedium(reason=DropReason.DIGEST_MISMATCH, detail=detail)
        return medium.encode(data)
    except DataError as error:
        return DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=str(error))


def _frames_among(opened: Sequence[tuple[MediaReference | Frames, ...] | DroppedMedium]) -> list[Frames]:
    return [item for of_file in opened if isinstance(of_file, tuple) for item in of_file if isinstance(item, Frames)]


def _encode_together(
    policy: Policy,
    opened: Sequence[tuple[MediaReference | Frames, ...] | DroppedMedium],
    frames: Sequence[Frames],
    ranks: Ranks,
) -> list[tuple[MediaReference, ...] | DroppedMedium]:
    """Encode the frames among what was opened, each by one rank.

    Raises:
        EngineError: Frames were read and can't be encoded or stored.
    """
    encoded: dict[str, MediaReference | UnusableMedium] = {}
    if frames and policy.encoder is not None:
        found = encode_media(policy.encoder, frames, policy.store, ranks.group)
        encoded = {medium.plan.key.digest: outcome for medium, outcome in zip(frames, found, strict=True)}
    finished: list[tuple[MediaReference, ...] | DroppedMedium] = []
    for of_file in opened:
        if isinstance(of_file, DroppedMedium):
            finished.append(of_file)
            continue
        references: list[MediaReference] = []
        dropped: DroppedMedium | None = None
        for item in of_file:
            outcome = encoded[item.plan.key.digest] if isinstance(item, Frames) else item
            if isinstance(outcome, MediaReference):
                references.append(outcome)
            elif DataError.__name__ in outcome.error_names:
                dropped = DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=outcome.message)
            else:
                raise EngineError(outcome.message)
        finished.append(dropped or tuple(references))
    return finished
