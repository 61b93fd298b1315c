"""The contents of a quickstart's folder, read once for the report. Computes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl.pipeline import STAGES_NAME, FinishedStage, read_finished
from longrl.run_files import read_object
from longrl_trainer.runs.journal import read_json_lines, steps_in
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
    config = read_object(folder, "config.json")
    main = int(config["grpo"]["data"]["num_frames"])
    by_frames = {
        num_frames: read_object(folder, _evaluation("grpo", num_frames))
        for num_frames in config["evaluation"]["num_frames"]
    }
    return RunData(
        folder=folder,
        config=config,
        stages=stages,
        untrained=read_object(folder, _evaluation("untrained", main)),
        sft=read_object(folder, _evaluation("sft", main)),
        grpo=by_frames[main],
        blind=read_object(folder, _evaluation("blind", main)),
        grpo_by_frames=by_frames,
        sft_steps=steps_in(read_json_lines(folder / "sft" / "metrics.jsonl")),
        grpo_steps=steps_in(read_json_lines(folder / "grpo" / "metrics.jsonl")),
        rollouts=read_json_lines(folder / "grpo" / "rollouts.jsonl"),
        records={record.question_id: record for record in read_records(folder / "dataset" / "records.parquet")},
    )


def _evaluation(name: str, num_frames: int) -> str:
    return f"evaluations/{name}/{num_frames}-frames.json"
