"""Opening and encoding the media that a split's questions are about, divided among the ranks.

Each file is opened once, by one rank; its frames are encoded by all ranks together.
"""

from collections.abc import Sequence

from longrl_trainer.config.sections import DataSection
from longrl_trainer.questions.length import PromptLengths
from longrl_trainer.questions.media import OpenMedium, opener_for
from longrl_trainer.questions.question import DroppedMedium, DroppedQuestion, DropReason, Question
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.record import QuestionRecord, resolve_video
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.encoding.parallel import PlannedMedium, UnusableMedium, encode_media
from mrsp_engine.errors import EngineError, UnfitMediumError
from mrsp_engine.families.base import Policy

# Enough to divide the files evenly among ranks that open them, few enough for a moving progress bar.
FILES_PER_RANK = 4


def encode_videos(
    data: DataSection,
    policy: Policy,
    records: Sequence[QuestionRecord],
    lengths: PromptLengths,
    progress: ProgressDisplay,
    ranks: Ranks,
) -> tuple[list[Question], list[DroppedQuestion], dict[str, EncodingPlan]]:
    """Encode every distinct video of the records that a question can be asked about; questions keep their order.

    Returns:
        Questions, what was dropped, and the plans of media of which the store doesn't have the embeddings.
    """
    about: dict[tuple[str, str], list[QuestionRecord]] = {}
    for record in records:
        about.setdefault((record.video_path, record.video_digest), []).append(record)
    files = list(about.items())
    outcomes: dict[str, tuple[MediaReference, ...] | DroppedMedium] = {}
    plans: dict[str, EncodingPlan] = {}
    opener = opener_for(policy)
    batch_size = 1 if ranks.group is None else FILES_PER_RANK * ranks.size
    with progress.task(f"Videos ({data.split})", total=len(files)) as bar:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            opened = ranks.divide(
                [of_file[0] for _, of_file in batch],
                lambda share: [_open_medium(data, policy, record, opener) for record in share],
            )
            too_long = {
                record.question_id: problem
                for (_, of_file), shown in zip(batch, opened, strict=True)
                for record in of_file
                if not isinstance(shown, DroppedMedium)
                and (problem := lengths.find_problem(record, _references(shown))) is not None
            }
            opened = [
                too_long[of_file[0].question_id] if all(record.question_id in too_long for record in of_file) else shown
                for (_, of_file), shown in zip(batch, opened, strict=True)
            ]
            frames = _planned_among(opened)
            encoded = _encode_together(policy, opened, frames, ranks)
            outcomes |= {
                record.question_id: too_long.get(record.question_id, outcome)
                for (_, of_file), outcome in zip(batch, encoded, strict=True)
                for record in of_file
            }
            plans |= {item.plan.reference.key: item.plan for item in frames if item.plan.key.content != "embeddings"}
            bar.advance(len(batch))
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


def _open_medium(
    data: DataSection, policy: Policy, record: QuestionRecord, opener: OpenMedium
) -> tuple[MediaReference | PlannedMedium, ...] | DroppedMedium:
    """What one file shows, or why it can't be used."""
    try:
        medium = opener(resolve_video(data.dataset, record), policy)
        if medium.content_digest != record.video_digest:
            detail = f"{record.video_path} is another file than the question was written for"
            return DroppedMedium(reason=DropReason.DIGEST_MISMATCH, detail=detail)
        return medium.encode(data)
    except DataError as error:
        return DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=str(error))
    except UnfitMediumError as error:
        return DroppedMedium(reason=DropReason.UNFIT_MEDIUM, detail=f"{record.video_path}: {error}")


def _references(shown: tuple[MediaReference | PlannedMedium, ...]) -> list[MediaReference]:
    return [item if isinstance(item, MediaReference) else item.plan.reference for item in shown]


def _planned_among(opened: Sequence[tuple[MediaReference | PlannedMedium, ...] | DroppedMedium]) -> list[PlannedMedium]:
    return [item for shown in opened if isinstance(shown, tuple) for item in shown if isinstance(item, PlannedMedium)]


def _encode_together(
    policy: Policy,
    opened: Sequence[tuple[MediaReference | PlannedMedium, ...] | DroppedMedium],
    frames: Sequence[PlannedMedium],
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
            outcome = encoded[item.plan.key.digest] if isinstance(item, PlannedMedium) else item
            if isinstance(outcome, MediaReference):
                references.append(outcome)
            elif outcome.is_unreadable:
                dropped = DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=outcome.message)
            else:
                raise EngineError(outcome.message)
        finished.append(dropped or tuple(references))
    return finished
