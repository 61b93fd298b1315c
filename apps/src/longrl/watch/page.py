"""The page: complete in one file, without anything from a network, and safe with any text of a run.

It draws what it is given as JSON, and text only as text. Served, it asks for what is new; as a file it holds everything
it shows, and says what was left out.
"""

import hashlib
import json
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

from longrl.report.templates import open_templates
from longrl.watch.watched_pipeline import WatchedPipeline
from longrl.watch.watched_run import WatchedRun
from longrl_trainer.durable import write_text

SCRIPT_NAMES = ("overview.js", "page.js")
MOST_GROUPS = 2000
MOST_QUESTIONS_WITH_FRAMES = 100


def live_page(run: WatchedRun | WatchedPipeline) -> str:
    """Write the page that asks a server for what it shows."""
    if isinstance(run, WatchedPipeline):
        return _render({"name": run.folder.resolve().name, "is_pipeline": True, "stage": "", "settings": {}})
    return _render({"name": run.folder.resolve().name, "stage": run.stage, "settings": run.settings})


def write_page(run: WatchedRun, path: Path) -> None:
    """Write the page as one file.

    Of a run with very many responses those of evenly spread groups are in it, and frames of the first questions.

    Raises:
        AppUsageError: The journals hold something else.
        TrainerError: The file can't be written.
    """
    state = run.state()
    rows = state["groups"]
    step = max(1, -(-len(rows) // MOST_GROUPS))
    state["groups"] = rows[::step]
    groups: dict[str, Any] = {}
    frames: dict[str, dict[str, Any]] = {}
    for row in state["groups"]:
        question_id = row["question_id"]
        if question_id not in frames and len(frames) < MOST_QUESTIONS_WITH_FRAMES:
            frames[question_id] = run.frames(question_id)
        groups[row["group_id"]] = run.groups.read(row["group_id"])
    content = {
        "name": run.folder.resolve().name,
        "stage": run.stage,
        "settings": run.settings,
        "state": state,
        "num_groups": len(rows),
        "groups": groups,
        "frames": frames,
    }
    write_text(path, _render(content))


def _render(content: dict[str, Any]) -> str:
    script = "".join(files("longrl.watch").joinpath(name).read_text(encoding="utf-8") for name in SCRIPT_NAMES)
    style = files("longrl.watch").joinpath("page.css").read_text(encoding="utf-8")
    # Within a script element only `<` could end it.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        open_templates("longrl.watch")
        .get_template("page.html.jinja")
        .render(
            name=content["name"],
            data=data,
            script=script,
            style=style,
            script_digest=_digest(script),
            style_digest=_digest(style),
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()
