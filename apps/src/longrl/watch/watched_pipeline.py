"""The folder of a pipeline as the page sees it: its stages, the run that trains now, and its videos before any does.

A pipeline is a quickstart or `longrl start`. Its runs appear one after the other, and a stage that is redone replaces
its run; the page follows the latest run unless somebody chose one. Only reads.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from longrl.errors import AppUsageError
from longrl.pipeline import STAGES_NAME
from longrl.report.build import REPORT_NAME
from longrl.report.figures import STAGE_TITLES
from longrl.report.run_data import FOOTAGE_STAGES, HEARING_STAGES, QUICKSTART_STAGES, TRAINING_STAGES
from longrl.report.thumbnails import MOST_FRAMES, draw_thumbnails, draw_video
from longrl.run_files import find_object
from longrl.watch.watched_run import WatchedRun
from longrl_files.folders import ForeignFolder
from longrl_trainer.durable import LINK_CURE
from longrl_trainer.runs.settings import SETTINGS_NAME
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.folder import RECORDS_NAME
from longvideo_reason_data.records.record import QuestionRecord, iter_records

PIPELINES = {
    "world": (*QUICKSTART_STAGES, *TRAINING_STAGES, "report"),
    "build": (*FOOTAGE_STAGES, *TRAINING_STAGES, "report"),
    "captions": ("captions", "pretraining", "rl", "report"),
}
"""The stages of every pipeline, by the first of them."""
RUN_NAMES = ("sft", "grpo", "rl")
"""Stages that are runs of training, in order; also the names of their folders."""
VIDEOS = "dataset/videos"
MOST_FILMS = 4


class WatchedPipeline:
    """One pipeline.

    Args:
        folder: Its folder, with `stages`.

    Attributes:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ForeignFolder(folder, error=AppUsageError, link_cure=LINK_CURE)
        self._opened: dict[str, tuple[int, WatchedRun]] = {}

    def state(self, *, run: str = "", edition: str = "", num_steps: int = 0, num_groups: int = 0) -> dict[str, Any]:
        """Give the stages, and of a run what is new for a page, as `WatchedRun.state`.

        Args:
            run: The run; the latest if it is empty or isn't there.
            edition: What the page has.
            num_steps: Steps of it that the page has.
            num_groups: Groups of it that the page has.

        Raises:
            AppUsageError: The files hold something else.
        """
        stages, names = self._list_stages(), self._list_runs()
        pipeline = {"stages": stages, "runs": names, "has_report": self._files.has(REPORT_NAME)}
        name = run if run in names else self._latest(names, stages)
        if name is None:
            empty: dict[str, Any] = {"steps": [], "panels": [], "groups": [], "is_finished": False}
            return {**pipeline, **empty, "edition": "none", "run": "", "stage": "", "settings": {}}
        opened_at, watched = self._open(name)
        own = f"{name}.{opened_at}."
        known = edition.removeprefix(own) if edition.startswith(own) else ""
        state = watched.state(edition=known, num_steps=num_steps, num_groups=num_groups)
        shown = {"run": name, "stage": watched.stage, "settings": watched.settings}
        return {**pipeline, **state, **shown, "edition": own + state["edition"]}

    def group(self, group_id: str, run: str) -> dict[str, Any] | None:
        """Give a group of a run with the frames of its media; None if there is none of this id."""
        return self._open(run)[1].group(group_id) if run in self._list_runs() else None

    def films(self) -> dict[str, Any]:
        """Give some frames of a few videos, each with a question about it; without, as long as they are rendered."""
        dataset = self.folder / "dataset"
        try:
            if self._files.has(f"dataset/{RECORDS_NAME}"):
                chosen = choose_questions(iter_records(dataset / RECORDS_NAME))
                return {
                    "films": [_describe_film(dataset, record) for record in chosen],
                    "are_final": True,
                    "problem": "",
                }
            videos = self._files.names(VIDEOS) if self._files.has(VIDEOS) else []
            complete = [name for name in videos if not name.startswith(".")][:MOST_FILMS]
            films = [_describe_video(self._files.path(f"{VIDEOS}/{name}")) for name in complete]
            return {"films": films, "are_final": False, "problem": ""}
        except (DataError, OSError) as error:
            return {"films": [], "are_final": False, "problem": str(error)}

    def _list_stages(self) -> list[dict[str, Any]]:
        """Every stage with its time so far, and whether it waits, goes on (or was stopped), or is finished."""
        names = next((names for first, names in PIPELINES.items() if self._stage_files(first)), PIPELINES["world"])
        if self._has_sound():
            names = (*names[:-1], *(f"evaluate-{name}" for name in HEARING_STAGES), names[-1])
        return [{"name": name, "title": STAGE_TITLES.get(name, name), **self._describe_stage(name)} for name in names]

    def _describe_stage(self, name: str) -> dict[str, Any]:
        found = self._stage_files(name)
        status = next(iter(found), "waiting")
        seconds = found[status].get("seconds") if found else None
        return {"status": status, "seconds": float(seconds) if isinstance(seconds, int | float) else None}

    def _stage_files(self, name: str) -> dict[str, dict[str, Any]]:
        found = {
            "finished": find_object(self.folder, f"{STAGES_NAME}/{name}.json"),
            "begun": find_object(self.folder, f"{STAGES_NAME}/{name}.started.json"),
        }
        return {status: values for status, values in found.items() if values is not None}

    def _has_sound(self) -> bool:
        """Whether it is a quickstart in a world with sound."""
        world = (find_object(self.folder, "config.json") or {}).get("world")
        return isinstance(world, dict) and cast(dict[str, object], world).get("sound") is True

    def _list_runs(self) -> list[str]:
        return [name for name in RUN_NAMES if self._files.has(f"{name}/{SETTINGS_NAME}")]

    def _latest(self, names: list[str], stages: list[dict[str, Any]]) -> str | None:
        """The run that is trained now, or else the last one."""
        begun = [stage["name"] for stage in stages if stage["status"] == "begun" and stage["name"] in names]
        return next(iter([*begun, *reversed(names)]), None)

    def _open(self, name: str) -> tuple[int, WatchedRun]:
        """The run, opened anew when a redone stage has replaced it."""
        status = self._files.status(f"{name}/{SETTINGS_NAME}")
        changed_at = 0 if status is None else status.st_mtime_ns
        if name not in self._opened or self._opened[name][0] != changed_at:
            self._opened[name] = changed_at, WatchedRun(self.folder / name)
        return self._opened[name]


def watch_folder(folder: Path) -> WatchedRun | WatchedPipeline:
    """Watch a run, or the pipeline whose folder it is.

    Raises:
        AppUsageError: It is neither.
    """
    return WatchedPipeline(folder) if (folder / STAGES_NAME).is_dir() else WatchedRun(folder)


def choose_questions(records: Iterable[QuestionRecord]) -> list[QuestionRecord]:
    """The first question of every skill, each about media of its own."""
    chosen: dict[str, QuestionRecord] = {}
    shown: set[str] = set()
    for record in records:
        if record.skill not in chosen and not shown & set(record.digests):
            chosen[record.skill] = record
            shown |= set(record.digests)
        if len(chosen) == MOST_FILMS:
            break
    return list(chosen.values())


def _describe_film(dataset: Path, record: QuestionRecord) -> dict[str, Any]:
    return {
        "question": record.question,
        "options": record.options,
        "answer": record.answer,
        "skill": str(record.skill),
        "frames": [asdict(frame) for frame in draw_thumbnails(dataset, record, MOST_FRAMES)],
    }


def _describe_video(path: Path) -> dict[str, Any]:
    frames = [asdict(frame) for frame in draw_video(path)]
    return {"question": "", "options": [], "answer": "", "skill": "", "frames": frames}
