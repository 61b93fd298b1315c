"""Which videos a run has shown to its model, so that an evaluation on unseen ones can be held to its word.

A run notes the videos of its split and those of the run that its model comes from, by the digest of their bytes.
Datasets grow, are merged and split anew; a video that was trained on may so come into a held-out split without a trace
in its name.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from longrl_trainer.config.sections import DataSection, records_path
from longrl_trainer.config.stages import EvaluateConfig
from longrl_trainer.durable import write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.runs.settings import SEEN_NAME, read_object
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import Split, iter_records

__all__ = ["note_seen_videos", "refuse_seen_videos"]


def note_seen_videos(run: Path, model: Path, shown: Iterable[Sequence[RecordMedium]], ranks: Ranks) -> None:
    """Write the videos that a run shows into its folder, once; all ranks call this together.

    Args:
        run: The run's folder.
        model: The folder of the model that it begins with.
        shown: The media of its questions.
        ranks: The processes of the run.

    Raises:
        TrainerUsageError: The note of the run before was written by something else.
    """

    def note() -> None:
        if not (run / SEEN_NAME).exists():
            videos = {medium.digest: medium.path for of_question in shown for medium in of_question}
            write_json(run / SEEN_NAME, {"videos": _read_seen(model) | videos})

    ranks.ask_first(note)


def refuse_seen_videos(config: EvaluateConfig) -> None:
    """Refuse to evaluate a model on held-out videos that it was trained on.

    Raises:
        TrainerUsageError: One of the videos was seen, and the recipe doesn't allow it.
    """
    model, data = config.model.folder, config.data
    if config.allow_seen_videos or data.split != Split.HELD_OUT or not (seen := _read_seen(model)):
        return
    known = [path for digest, path in _videos_of(data).items() if digest in seen]
    if known:
        raise TrainerUsageError(
            f"{data.dataset}: {known[0]} is in the split {data.split!r} and was seen in the training of {model} "
            f"({len(known)} such videos), so nothing unseen would be measured; set another `data.dataset`, or "
            "`allow_seen_videos = true`"
        )


def _videos_of(data: DataSection) -> dict[str, str]:
    """The paths of a split's videos and images in the dataset, by digest."""
    records = (record for record in iter_records(records_path(data)) if record.split == Split(data.split))
    return {medium.digest: medium.path for record in records for medium in record.media}


def _read_seen(model: Path) -> dict[str, str]:
    """What the run of a model has noted; nothing for a model that isn't in the folder of a run."""
    for folder in (model, model.parent):
        found = read_object(folder, SEEN_NAME, {"videos": dict}) if folder.is_dir() else None
        if found is not None:
            return {str(digest): str(path) for digest, path in found.get("videos", {}).items()}
    return {}
