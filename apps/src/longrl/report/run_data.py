"""The contents of a pipeline's folder, of a quickstart or of one's own videos, read once for the report.

Computes nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl.pipeline import STAGES_NAME, FinishedStage, read_finished
from longrl.run_files import find_object, read_object
from longrl_trainer.runs.journal import read_json_lines, steps_in
from longvideo_reason_data.records.record import QuestionRecord, read_records

TRAINING_STAGES = (
    "encode",
    "evaluate-untrained",
    "sft",
    "evaluate-sft",
    "grpo",
    "evaluate-grpo",
    "evaluate-blind",
)
"""The stages of any pipeline between its videos and the report, in order."""
HEARING_STAGES = ("sound-off", "picture-off")
"""Evaluations of the final model in a world with sound, beside that without the whole video."""
QUICKSTART_STAGES = ("world", "model")
FOOTAGE_STAGES = ("build",)
"""What comes before them with one's own videos."""
RL_QUESTIONS_NAME = "train-rl.json"
"""In the folders of evaluations before and after GRPO: the answers to questions that GRPO trains on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A finished pipeline."""

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
    with_one_sense: dict[str, dict[str, Any]]
    """The final model without sound and without pictures, by `HEARING_STAGES`; empty if its world has no sound."""
    on_rl_questions: dict[str, dict[str, Any]]
    """`sft` and `grpo` on the same questions of GRPO's training; empty if they weren't asked."""
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
    def is_rendered(self) -> bool:
        """Whether its videos are those of a quickstart's world."""
        return "world" in self.stages

    @property
    def num_frames(self) -> int:
        """Frames at which all models are compared."""
        return _main_frames(self.config)


def read_run(folder: Path) -> RunData:
    """Read a folder.

    Raises:
        AppUsageError: It isn't a pipeline's folder, or a stage isn't finished.
    """
    if not (folder / STAGES_NAME).is_dir():
        raise AppUsageError(
            f"{folder}: not a quickstart's folder; expected the --output of `longrl quickstart` or `longrl start`"
        )
    is_own = any(
        (folder / STAGES_NAME / f"{FOOTAGE_STAGES[0]}{ending}").exists() for ending in (".json", ".started.json")
    )
    command = "start" if is_own else "quickstart"
    stages: dict[str, FinishedStage] = {}
    config = read_object(folder, "config.json")
    senses = HEARING_STAGES if config.get("world", {}).get("sound") else ()
    before = FOOTAGE_STAGES if is_own else QUICKSTART_STAGES
    for name in (*before, *TRAINING_STAGES, *(f"evaluate-{name}" for name in senses)):
        stage = read_finished(folder, name)
        if stage is None:
            raise AppUsageError(
                f"{folder}: the stage {name} isn't finished; run `longrl {command} --output {folder}` first"
            )
        stages[name] = stage
    main = _main_frames(config)
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
        with_one_sense={name: read_object(folder, _evaluation(name, main)) for name in senses},
        on_rl_questions=_read_rl_questions(folder),
        sft_steps=steps_in(read_json_lines(folder / "sft" / "metrics.jsonl")),
        grpo_steps=steps_in(read_json_lines(folder / "grpo" / "metrics.jsonl")),
        rollouts=read_json_lines(folder / "grpo" / "rollouts.jsonl"),
        records={record.question_id: record for record in read_records(folder / "dataset" / "records.parquet")},
    )


def _read_rl_questions(folder: Path) -> dict[str, dict[str, Any]]:
    found = {name: find_object(folder, f"evaluations/{name}/{RL_QUESTIONS_NAME}") for name in ("sft", "grpo")}
    return {name: values for name, values in found.items() if values is not None} if all(found.values()) else {}


def _main_frames(config: dict[str, Any]) -> int:
    section = config["evaluate"] if "evaluate" in config else config["grpo"]
    return int(section["data"]["num_frames"])


def _evaluation(name: str, num_frames: int) -> str:
    return f"evaluations/{name}/{num_frames}-frames.json"
