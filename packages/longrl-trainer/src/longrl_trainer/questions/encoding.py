"""Opening and encoding the media of a split's questions, divided among the ranks.

Each file is opened once, by one rank; its frames are encoded by all ranks together. Questions that share a file are
decided together, so that a file needed only by questions that are too long is never encoded.
"""

from collections.abc import Iterator, Mapping, Sequence

from longrl_trainer.config.sections import DataSection
from longrl_trainer.questions.length import PromptLengths
from longrl_trainer.questions.media import OpenMedium, opener_for
from longrl_trainer.questions.question import DroppedMedium, DroppedQuestion, DropReason, Question
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.medium import MediumKind, RecordMedium, resolve_medium
from longvideo_reason_data.records.record import QuestionRecord
from longvideo_reason_data.records.splits import connect_media
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.encoding.parallel import PlannedMedium, UnusableMedium, encode_media
from mrsp_engine.errors import EngineError, UnfitMediumError
from mrsp_engine.families.base import Policy

# Enough to divide the files evenly among the ranks, few enough for a moving progress bar.
FILES_PER_RANK = 4

File = tuple[str, ...]
"""What identifies a file before it is opened."""
Shown = tuple[MediaReference | PlannedMedium, ...]
"""The media of one file."""


def encode_questions(
    data: DataSection,
    policy: Policy,
    records: Sequence[QuestionRecord],
    lengths: PromptLengths,
    progress: ProgressDisplay,
    ranks: Ranks,
) -> tuple[list[Question], list[DroppedQuestion], dict[str, EncodingPlan]]:
    """Encode every distinct file of the usable questions; questions and their media keep their order.

    Returns:
        Questions, what was dropped, and the plans of media whose embeddings aren't in the store.
    """
    outcomes: dict[str, tuple[MediaReference, ...] | DroppedMedium] = {}
    plans: dict[str, EncodingPlan] = {}
    openers = {kind: opener_for(policy, kind) for kind in MediumKind}
    least_files = 1 if ranks.group is None else FILES_PER_RANK * ranks.size
    num_files = len({file_of(medium) for record in records for medium in record.media})
    with progress.task(f"Videos ({data.split})", total=num_files) as bar:
        for batch in _batches(records, least_files):
            media = {file_of(medium): medium for record in batch for medium in record.media}
            found = ranks.divide(
                list(media.values()),
                lambda share: [open_file(data, policy, medium, openers[medium.kind]) for medium in share],
            )
            opened = dict(zip(media, found, strict=True))
            problems = {record.question_id: _find_problem(record, opened, lengths) for record in batch}
            asked = [record for record in batch if problems[record.question_id] is None]
            shown = {file_of(medium): opened[file_of(medium)] for record in asked for medium in record.media}
            frames = planned_among(list(shown.values()))
            encoded = dict(zip(shown, encode_together(policy, list(shown.values()), frames, ranks), strict=True))
            for record in batch:
                outcomes[record.question_id] = problems[record.question_id] or join_references(
                    [encoded[file_of(medium)] for medium in record.media]
                )
            plans |= {item.plan.reference.key: item.plan for item in frames if item.plan.key.content != "embeddings"}
            bar.advance(len(media))
    kept: list[Question] = []
    dropped: list[DroppedQuestion] = []
    for record in records:
        outcome = outcomes[record.question_id]
        if isinstance(outcome, DroppedMedium):
            dropped.append(
                DroppedQuestion(question_id=record.question_id, reason=outcome.reason, detail=outcome.detail)
            )
        else:
            kept.append(Question(record=record, media=outcome))
    return kept, dropped, plans


def _batches(records: Sequence[QuestionRecord], least_files: int) -> Iterator[list[QuestionRecord]]:
    """Batches that keep questions with shared files together, directly or transitively, with enough files to divide."""
    roots = connect_media(record.digests for record in records)
    connected: dict[str, list[QuestionRecord]] = {}
    for record in records:
        connected.setdefault(roots[record.digests[0]], []).append(record)
    batch: list[QuestionRecord] = []
    files: set[File] = set()
    for group in connected.values():
        batch += group
        files |= {file_of(medium) for record in group for medium in record.media}
        if len(files) >= least_files:
            yield batch
            batch, files = [], set()
    if batch:
        yield batch


def file_of(medium: RecordMedium) -> File:
    """What identifies the file of a medium."""
    return medium.kind, medium.path, medium.digest


def _find_problem(
    record: QuestionRecord, opened: Mapping[File, Shown | DroppedMedium], lengths: PromptLengths
) -> DroppedMedium | None:
    """Return why a question can't be used, if one of its media is unusable or its prompt would be too long."""
    references: list[MediaReference] = []
    for medium in record.media:
        shown = opened[file_of(medium)]
        if isinstance(shown, DroppedMedium):
            return shown
        references += references_of(shown)
    return lengths.find_problem(record, references)


def join_references(
    outcomes: Sequence[tuple[MediaReference, ...] | DroppedMedium],
) -> tuple[MediaReference, ...] | DroppedMedium:
    """All media of a question, or the first that is unusable."""
    references: list[MediaReference] = []
    for outcome in outcomes:
        if isinstance(outcome, DroppedMedium):
            return outcome
        references += outcome
    return tuple(references)


def open_file(data: DataSection, policy: Policy, medium: RecordMedium, opener: OpenMedium) -> Shown | DroppedMedium:
    """The media of one file, or why it can't be used."""
    try:
        opened = opener(resolve_medium(data.dataset, medium), policy)
        if opened.content_digest != medium.digest:
            detail = f"{medium.path} is not the file that the question was written for"
            return DroppedMedium(reason=DropReason.DIGEST_MISMATCH, detail=detail)
        return opened.encode(data)
    except DataError as error:
        return DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=str(error))
    except UnfitMediumError as error:
        return DroppedMedium(reason=DropReason.UNFIT_MEDIUM, detail=f"{medium.path}: {error}")


def references_of(shown: Shown) -> list[MediaReference]:
    """References to the media of a file, encoded or not."""
    return [item if isinstance(item, MediaReference) else item.plan.reference for item in shown]


def planned_among(opened: Sequence[Shown | DroppedMedium]) -> list[PlannedMedium]:
    """The media of opened files that are encoded from frames."""
    return [item for shown in opened if isinstance(shown, tuple) for item in shown if isinstance(item, PlannedMedium)]


def encode_together(
    policy: Policy,
    opened: Sequence[Shown | DroppedMedium],
    frames: Sequence[PlannedMedium],
    ranks: Ranks,
) -> list[tuple[MediaReference, ...] | DroppedMedium]:
    """Encode the planned frames of opened files, each frame on one rank.

    Raises:
        EngineError: Frames were read but can't be encoded or stored.
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
            outcome = encoded[item.plan.key.digest] if isinstance(item, PlannedMedium) else item
            if isinstance(outcome, MediaReference):
                references.append(outcome)
            elif outcome.is_unreadable:
                dropped = DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=outcome.message)
            else:
                raise EngineError(outcome.message)
        finished.append(dropped or tuple(references))
    return finished
