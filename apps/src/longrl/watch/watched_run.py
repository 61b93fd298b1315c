"""A run's folder as the page sees it: settings, curves, groups, and the frames of a group. Only reads."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from longrl.errors import AppUsageError
from longrl.report.thumbnails import draw_thumbnails
from longrl.run_files import find_object
from longrl.watch.curves import arrange
from longrl.watch.groups import GroupIndex
from longrl.watch.growing_journal import GrowingJournal
from longrl_trainer.runs.trackers import flatten
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.record import QuestionRecord, iter_records

FRAMES_WITHOUT_NUMBER = 64
"""Frames of a plan that goes by frames per second, for choosing the few that are shown."""


class WatchedRun:
    """One run.

    Args:
        folder: Its folder, with `settings.json`.

    Attributes:
        folder: Its folder.
        stage: What it trains by, `sft`, `grpo` or `generate-grpo`.
        settings: Its settings as they were resolved.
        groups: Its responses.

    Raises:
        AppUsageError: It is no run's folder.
    """

    def __init__(self, folder: Path) -> None:
        saved = find_object(folder, "settings.json") if folder.is_dir() else None
        if saved is None or not isinstance(saved.get("settings"), dict):
            runs = sorted(path.parent.name for path in folder.glob("*/settings.json"))
            inside = f"; the folders {' and '.join(runs)} in it are runs" if runs else ""
            raise AppUsageError(
                f"{folder}: no run; expected the `output` of `longrl sft`, `grpo` or `generate-grpo`{inside}"
            )
        self.folder = folder
        self.stage = str(saved.get("stage"))
        self.settings: dict[str, Any] = saved["settings"]
        self.groups = GroupIndex(folder)
        places = saved.get("places")
        self._dataset = Path(str(cast(dict[str, Any], places).get("dataset"))) if isinstance(places, dict) else None
        self._journal = GrowingJournal(folder, "metrics.jsonl")
        self._lines: list[dict[str, float]] = []
        self._edition = 0
        self._records: dict[str, QuestionRecord] = {}

    def state(self, *, edition: str = "", num_steps: int = 0, num_groups: int = 0) -> dict[str, Any]:
        """Give what is new for a page that has already so many steps and groups.

        Args:
            edition: The edition of the journals that the page has; of another it gets everything.
            num_steps: Steps that it has.
            num_groups: Groups that it has.

        Raises:
            AppUsageError: The journals hold something else.
        """
        added = [flatten(line) for _, line in self._journal.look()]
        if self._journal.edition != self._edition:
            self._edition = self._journal.edition
            self._lines.clear()
        self._lines += added
        self.groups.refresh()
        current = f"{self._journal.edition}-{self.groups.edition}"
        if edition != current:
            num_steps = num_groups = 0
        names = dict.fromkeys(name for line in self._lines for name in line if name != "step")
        return {
            "edition": current,
            "is_finished": find_object(self.folder, "result.json") is not None,
            "steps": self._lines[num_steps:],
            "panels": [{**asdict(panel), "names": own} for panel, own in arrange(names)],
            "groups": [asdict(row) for row in self.groups.rows[num_groups:]],
        }

    def group(self, group_id: str) -> dict[str, Any] | None:
        """Give a group with the frames of its media; None if there is none of this id."""
        group = self.groups.read(group_id)
        return None if group is None else {"group_id": group_id, **group, **self.frames(str(group.get("question_id")))}

    def frames(self, question_id: str) -> dict[str, Any]:
        """Give some frames that the model sees for a question, with their times, or why there are none."""
        try:
            record = self._record(question_id)
            if self._dataset is None or record is None:
                return {"frames": [], "frames_missing": "the question isn't in the run's dataset any more"}
            data = self.settings.get("data")
            wanted = cast(dict[str, Any], data).get("num_frames") if isinstance(data, dict) else None
            num_frames = wanted if isinstance(wanted, int) and wanted > 0 else FRAMES_WITHOUT_NUMBER
            drawn = draw_thumbnails(self._dataset, record, num_frames)
        except (DataError, OSError) as error:
            return {"frames": [], "frames_missing": str(error)}
        return {"frames": [asdict(thumbnail) for thumbnail in drawn], "frames_missing": ""}

    def _record(self, question_id: str) -> QuestionRecord | None:
        if self._dataset is not None and not self._records:
            self._records = {record.question_id: record for record in iter_records(self._dataset / "records.parquet")}
        return self._records.get(question_id)
