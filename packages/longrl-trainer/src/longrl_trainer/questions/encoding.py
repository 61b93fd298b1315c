"""Opening and encoding the media that a split's questions are about, divided among the ranks.

Each file is opened once, by one rank; its frames are encoded by all ranks together.
"""

from collections.abc import Sequence

from longrl_trainer.config.sections import DataSection
from longrl_trainer.questions.media import NotEncodableError, OpenMedium, opener_for
from longrl_trainer.questions.question import DroppedMedium, DroppedQuestion, DropReason, Question
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.medium import MediumKind, RecordMedium, resolve_medium
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.encoding.parallel import Medium as Frames
from mrsp_engine.encoding.parallel import UnusableMedium, encode_media
from mrsp_engine.errors import EngineError
from mrsp_engine.families.base import Policy

# Enough to divide the files evenly among ranks that open them, few enough for a moving progress bar.
FILES_PER_RANK = 4


def encode_questions(
    data: DataSection, policy: Policy, records: Sequence[QuestionRecord], progress: ProgressDisplay, ranks: Ranks
) -> tuple[list[Question], list[DroppedQuestion], dict[str, EncodingPlan]]:
    """Encode every distinct file of the records; questions keep the records' order, their media that of the record.

    Returns:
        Questions, what was dropped, and the plans of media of which the store doesn't have the embeddings.
    """
    files = list({_file_of(medium): medium for record in records for medium in record.media}.values())
    outcomes: dict[tuple[str, ...], tuple[MediaReference, ...] | DroppedMedium] = {}
    plans: dict[str, EncodingPlan] = {}
    openers = {kind: opener_for(policy, kind) for kind in MediumKind}
    batch_size = 1 if ranks.group is None else FILES_PER_RANK * ranks.size
    with progress.task(f"Videos ({data.split})", total=len(files)) as bar:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            opened = ranks.divide(
                batch, lambda share: [_open_medium(data, policy, medium, openers[medium.kind]) for medium in share]
            )
            frames = _frames_among(opened)
            encoded = _encode_together(policy, opened, frames, ranks)
            outcomes |= {_file_of(medium): outcome for medium, outcome in zip(batch, encoded, strict=True)}
            plans |= {item.plan.reference.key: item.plan for item in frames if item.plan.key.content != "embeddings"}
            bar.advance(len(batch))
    kept: list[Question] = []
    dropped: list[DroppedQuestion] = []
    for record in records:
        found = [outcomes[_file_of(medium)] for medium in record.media]
        lost = next((outcome for outcome in found if isinstance(outcome, DroppedMedium)), None)
        if lost is not None:
            dropped.append(DroppedQuestion(question_id=record.question_id, reason=lost.reason, detail=lost.detail))
        else:
            references = (reference for outcome in found if isinstance(outcome, tuple) for reference in outcome)
            kept.append(Question(record=record, media=tuple(references)))
    return kept, dropped, plans


def _file_of(medium: RecordMedium) -> tuple[str, ...]:
    """What tells one file from another before it is opened."""
    return medium.kind, medium.path, medium.digest


def _open_medium(
    data: DataSection, policy: Policy, medium: RecordMedium, opener: OpenMedium
) -> tuple[MediaReference | Frames, ...] | DroppedMedium:
    """What one file shows, or why it can't be used."""
    try:
        opened = opener(resolve_medium(data.dataset, medium), policy)
        if opened.content_digest != medium.digest:
            detail = f"{medium.path} is another file than the question was written for"
            return DroppedMedium(reason=DropReason.DIGEST_MISMATCH, detail=detail)
        return opened.encode(data)
    except DataError as error:
        return DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=str(error))
    except NotEncodableError as error:
        return DroppedMedium(reason=DropReason.NOT_ENCODABLE, detail=f"{medium.path}: {error}")


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
