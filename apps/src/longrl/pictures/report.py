"""`report.html` and `report.json` of the world of pictures: pictures before and after, and what rewards say of them.

The page needs no network and no script.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from longrl.pictures.config import PicturesConfig
from longrl.pipeline import Pipeline
from longrl.report.charts import Series, line_chart, linear_axis, smooth, step_axis
from longrl.report.summary import describe_environment
from longrl.report.templates import list_settings, open_templates
from longrl_omni.generation.grpo import AFTER, BEFORE
from longrl_omni.generation.prompts import read_prompts
from longrl_trainer.durable import write_json, write_text
from longrl_trainer.runs.journal import read_json_lines

REPORT_NAME, SUMMARY_NAME = "report.html", "report.json"
TEMPLATE_NAME = "report.html.jinja"
SHOWN_CAPTIONS, SHOWN_PICTURES = 12, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRow:
    """A held-out caption with pictures of one noise, before and after, as data URIs."""

    caption: str
    before: Sequence[str]
    after: Sequence[str]


def write_report(config: PicturesConfig, pipeline: Pipeline) -> dict[str, Any]:
    """Write both files; returns the contents of `report.json`."""
    pretraining, trained = pipeline.result("pretraining"), pipeline.result("rl")
    seconds = {name: pipeline.seconds(name) for name in ("captions", "pretraining", "rl")}
    summary: dict[str, Any] = {
        "seed": config.seed,
        "algorithm": config.rl.algorithm,
        "checker_accuracy": trained["checker_accuracy"],
        "held_out_reward": trained["held_out_reward"],
        "captions": pipeline.result("captions"),
        "samples": config.rl.steps * config.rl.prompts_per_step * config.rl.group_size,
        "parameters": pretraining["parameters"],
        "ratio_error": trained["ratio_error"],
        "prompts_encoded": trained["prompts_encoded"],
        "seconds": {**seconds, "total": sum(seconds.values())},
        **describe_environment(),
    }
    steps = read_json_lines(config.rl.output / "metrics.jsonl")
    page = (
        open_templates("longrl.pictures")
        .get_template(TEMPLATE_NAME)
        .render(
            style=Markup(open_templates().get_template("style.css.jinja").render()),
            summary=summary,
            held_out_name=config.rl.held_out_reward,
            num_steps=config.rl.steps,
            rows=_list_rows(config),
            reward_chart=_chart(steps, "reward", "trained reward"),
            held_out_chart=_chart(steps, "held_out_reward", "held-out reward"),
            loss_chart=_loss_chart(pretraining["losses"]),
            settings=list_settings(config.model_dump(mode="json")),
        )
    )
    write_text(config.output / REPORT_NAME, page)
    write_json(config.output / SUMMARY_NAME, summary)
    return summary


def _list_rows(config: PicturesConfig) -> list[CaptionRow]:
    captions = read_prompts(config.rl.held_out_prompts, "held_out_prompts")[:SHOWN_CAPTIONS]
    per_caption = config.rl.evaluation_samples
    shown = min(per_caption, SHOWN_PICTURES)

    def pictures(name: str, place: int) -> list[str]:
        folder = config.rl.output / "pictures" / name
        return [_data_uri(folder / f"{place * per_caption + sample:04d}.png") for sample in range(shown)]

    return [
        CaptionRow(caption=caption, before=pictures(BEFORE, place), after=pictures(AFTER, place))
        for place, caption in enumerate(captions)
    ]


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _chart(steps: Sequence[dict[str, Any]], name: str, title: str) -> Markup:
    """A number of every step, and its mean over neighbouring steps."""
    points = [(float(line["step"]), float(line[name])) for line in steps if line.get(name) is not None]
    values = [value for _, value in points]
    return line_chart(
        title,
        [Series(label="", points=points, style="faint"), Series(label="mean", points=smooth(points, 3))],
        step_axis(len(steps)),
        linear_axis(title, min(values, default=0.0), max(values, default=1.0)),
    )


def _loss_chart(losses: Sequence[float]) -> Markup:
    points = [(float(step + 1), loss) for step, loss in enumerate(losses)]
    return line_chart(
        "loss of pretraining",
        [Series(label="loss", points=smooth(points, 10))],
        step_axis(len(losses)),
        linear_axis("squared error of the velocity", 0.0, max(losses, default=1.0)),
    )
