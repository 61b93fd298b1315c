"""The contents of a quickstart's folder, read once for the report. Computes nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl.pipeline import STAGES_NAME, FinishedStage, read_finished
from longrl_trainer.runs.journal import read_json_lines
from longvideo_reason_data.records.record import QuestionRecord, read_records

STAGE_NAMES = (
    "world",
    "model",
    "encode",
    "evaluate-untrained",
    "sft",
    "evaluate-sft",
    "grpo",
    "evaluate-grpo",
    "evaluate-blind",
)
"""The stages before the report, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A finished quickstart."""

    folder: Path
    config: dict[str, Any]
    stages: dict[str, FinishedStage]
    untrained: dict[str, Any]
    sft: dict[str, Any]
    grpo: dict[str, Any]
    """The final model at the number of frames at which all models are compared."""
    blind: dict[str, Any]
    grpo_by_frames: dict[int, dict[str, Any]]
    """The final model at every number of frames, ascending."""
    sft_steps: list[dict[str, Any]]
    grpo_steps: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    records: dict[str, QuestionRecord]
    """Records by question id."""

    @property
    def dataset(self) -> Path:
        """Folder of the videos."""
        return self.folder / "dataset"

    @property
    def num_frames(self) -> int:
        """Frames at which all models are compared."""
        return int(self.config["grpo"]["data"]["num_frames"])


def read_run(folder: Path) -> RunData:
    """Read a folder.

    Raises:
        AppUsageError: It isn't a quickstart's folder, or a stage isn't finished.
    """
    if not (folder / STAGES_NAME).is_dir():
        raise AppUsageError(f"{folder}: not a quickstart's folder; expected the --output of `longrl quickstart`")
    stages: dict[str, FinishedStage] = {}
    for name in STAGE_NAMES:
        stage = read_finished(folder, name)
        if stage is None:
            raise AppUsageError(
                f"{folder}: the stage {name} isn't finished; run `longrl quickstart --output {folder}` first"
            )
        stages[name] = stage
    config = _read_json(folder / "config.json")
    main = int(config["grpo"]["data"]["num_frames"])
    by_frames = {
        num_frames: _read_json(_evaluation(folder, "grpo", num_frames))
        for num_frames in config["evaluation"]["num_frames"]
    }
    return RunData(
        folder=folder,
        config=config,
        stages=stages,
        untrained=_read_json(_evaluation(folder, "untrained", main)),
        sft=_read_json(_evaluation(folder, "sft", main)),
        grpo=by_frames[main],
        blind=_read_json(_evaluation(folder, "blind", main)),
        grpo_by_frames=by_frames,
        sft_steps=read_json_lines(folder / "sft" / "metrics.jsonl"),
        grpo_steps=read_json_lines(folder / "grpo" / "metrics.jsonl"),
        rollouts=read_json_lines(folder / "grpo" / "rollouts.jsonl"),
        records={record.question_id: record for record in read_records(folder / "dataset" / "records.parquet")},
    )


def _evaluation(folder: Path, name: str, num_frames: int) -> Path:
    return folder / "evaluations" / name / f"{num_frames}-frames.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AppUsageError(f"{path}: can't be read ({error}); run the quickstart again") from error
