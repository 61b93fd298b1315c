"""The figures of the report: which numbers of a run are drawn, and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from longrl.report.charts import (
    Point,
    Rule,
    Series,
    choice_axis,
    line_chart,
    linear_axis,
    log_axis,
    smooth,
    step_axis,
)
from longrl.report.run_data import RunData

GAP_LIMIT = 1e-4
SKILL_NAMES = {
    "temporal": "Temporal",
    "goal": "Goal and purpose",
    "spatial": "Spatial",
    "plot": "Plot and narrative",
}
STAGE_TITLES = {
    "world": "Render videos, write questions",
    "build": "Build the dataset",
    "model": "Build the model",
    "encode": "Encode videos",
    "evaluate-untrained": "Evaluate the untrained model",
    "sft": "CoT-SFT",
    "evaluate-sft": "Evaluate after SFT",
    "grpo": "GRPO",
    "evaluate-grpo": "Evaluate after GRPO",
    "evaluate-blind": "Evaluate without video",
    "evaluate-sound-off": "Evaluate without sound",
    "evaluate-picture-off": "Evaluate without pictures",
    "report": "Write the report",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One horizontal bar.

    Attributes:
        label: Name of the quantity.
        value: The value as text.
        share: Length, from 0 to 1.
        error: Half the length of its error bar, in the same unit.
        style: `accent` or `plain`.
    """

    label: str
    value: str
    share: float
    error: float = 0.0
    style: str = "plain"


def accuracy_bars(summary: dict[str, Any]) -> list[Bar]:
    """Baselines, then the three models."""
    labels = {
        "chance": "Guessing",
        "constant": "Best constant letter",
        "blind": "Final model, video hidden",
        "untrained": "Untrained",
        "sft": "After CoT-SFT",
        "grpo": "After GRPO",
    }
    errors = summary["accuracy_standard_error"]
    return [
        Bar(
            label=label,
            value=f"{summary['accuracy'][name]:.1%}",
            share=summary["accuracy"][name],
            error=errors.get(name, 0.0),
            style="accent" if name == "grpo" else "plain",
        )
        for name, label in labels.items()
    ]


def senses_bars(summary: dict[str, Any]) -> list[tuple[str, list[Bar]]]:
    """The final model with and without sound and pictures, by what a question needs."""
    titles = {"both": "Need pictures and sound", "sound": "Need the sound", "picture": "Need the pictures"}
    labels = {
        "grpo": "Seen and heard",
        "sound-off": "Seen only",
        "picture-off": "Heard only",
        "blind": "Neither seen nor heard",
    }
    return [
        (
            f"{title} ({by_model['grpo']['questions']} questions)",
            [
                Bar(
                    label=label,
                    value=f"{by_model[name]['accuracy']:.1%}",
                    share=by_model[name]["accuracy"],
                    error=by_model[name]["standard_error"],
                    style="accent" if name == "grpo" else "plain",
                )
                for name, label in labels.items()
            ],
        )
        for senses, title in titles.items()
        if (by_model := summary["accuracy_by_senses"].get(senses))
    ]


def skill_bars(summary: dict[str, Any]) -> list[tuple[str, list[Bar]]]:
    """Accuracy before and after GRPO for every skill."""
    by_model = summary["accuracy_by_skill_and_model"]
    return [
        (
            name,
            [
                Bar(
                    label=label,
                    value=f"{by_model[model][skill]:.0%}",
                    share=by_model[model][skill],
                    style="accent" if model == "grpo" else "plain",
                )
                for model, label in (("sft", "SFT"), ("grpo", "GRPO"))
            ],
        )
        for skill, name in SKILL_NAMES.items()
        if skill in by_model["grpo"] and skill in by_model["sft"]
    ]


def gain_bars(summary: dict[str, Any]) -> list[tuple[str, list[Bar]]]:
    """Accuracy before and after GRPO, on questions that it trains on and on those that it doesn't."""
    held_out = {name: (summary["accuracy"][name], summary["accuracy_standard_error"][name]) for name in ("sft", "grpo")}
    trained = {
        name: (found["accuracy"], found["standard_error"])
        for name, found in summary["accuracy_on_rl_questions"].items()
    }
    titles = (
        ("rl_questions", "Questions that GRPO trains on", trained),
        ("held_out", "Questions about unseen videos", held_out),
    )
    return [
        (
            f"{title}: {describe_gain(summary['gain_of_grpo'][name])}",
            [
                Bar(
                    label=label,
                    value=f"{found[model][0]:.1%}",
                    share=found[model][0],
                    error=found[model][1],
                    style="accent" if model == "grpo" else "plain",
                )
                for model, label in (("sft", "Before GRPO"), ("grpo", "After GRPO"))
            ],
        )
        for name, title, found in titles
        if found
    ]


def describe_gain(gain: dict[str, float]) -> str:
    """A difference of two accuracies in points, with its standard error."""
    text = f"{100 * gain['accuracy']:+.1f} ± {100 * gain['standard_error']:.1f} points"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def describe_encodes(run: RunData, num_encodes: int) -> str:
    """What the number of encodes counts: a video counts once for each number of frames that it is shown at."""
    more = [num_frames for num_frames in run.grpo_by_frames if num_frames != run.num_frames]
    words = f"{num_encodes} encodes: every video once for each number of frames that it is shown with"
    if not more:
        return words
    return f"{words}, which for the held-out videos are also {' and '.join(map(str, more))}"


def time_bars(seconds: dict[str, float]) -> list[Bar]:
    """Seconds per stage, in order."""
    longest = max(value for name, value in seconds.items() if name != "total") or 1.0
    return [
        Bar(label=STAGE_TITLES[name], value=f"{seconds[name]:.1f} s", share=seconds[name] / longest)
        for name in STAGE_TITLES
        if name in seconds
    ]


def reward_chart(run: RunData) -> Markup:
    """Reward and accuracy of the sampled responses, per GRPO step."""
    reward, accuracy = _column(run.grpo_steps, "reward"), _column(run.grpo_steps, "accuracy")
    half_width = max(0, len(run.grpo_steps) // 12)
    values = [value for _, value in reward + accuracy] or [0.0, 1.0]
    return line_chart(
        "Mean reward and accuracy of sampled responses in every GRPO step",
        [
            Series(label="", points=accuracy, style="faint"),
            Series(label="", points=reward, style="faint"),
            Series(label="accuracy", points=smooth(accuracy, half_width), style="plain"),
            Series(label="reward", points=smooth(reward, half_width)),
        ],
        step_axis(len(run.grpo_steps), "GRPO step"),
        linear_axis("mean over sampled responses", min(values), max(values)),
    )


def loss_chart(run: RunData) -> Markup:
    """SFT loss per step."""
    loss = _column(run.sft_steps, "loss")
    values = [value for _, value in loss] or [1.0]
    return line_chart(
        "Loss in every step of CoT-SFT",
        [
            Series(label="", points=loss, style="faint"),
            Series(label="loss", points=smooth(loss, max(0, len(loss) // 60))),
        ],
        step_axis(len(loss), "SFT step"),
        linear_axis("loss, nats per token", 0.0, max(values)),
    )


def frames_chart(run: RunData, summary: dict[str, Any]) -> Markup:
    """Accuracy of the final model against the number of frames it sees."""
    points = [(float(frames), value["accuracy"]) for frames, value in run.grpo_by_frames.items()]
    blind, constant = summary["accuracy"]["blind"], summary["accuracy"]["constant"]
    values = [value for _, value in points] + [blind, constant]
    return line_chart(
        "Accuracy of the final model against the number of frames it sees",
        [Series(label="GRPO", points=points, has_dots=True)],
        choice_axis("frames per video", list(run.grpo_by_frames)),
        linear_axis("accuracy on held-out videos", max(0.0, min(values) - 0.05), max(values), is_share=True),
        [Rule(label="no video", value=blind), Rule(label="constant", value=constant)],
    )


def gap_chart(run: RunData) -> Markup:
    """Difference between sampler and trainer, per GRPO step."""
    steps = run.grpo_steps
    mean = [(float(step["step"]), step["logprob_gap"]["mean_abs"]) for step in steps]
    largest = [(float(step["step"]), step["logprob_gap"]["max_abs"]) for step in steps]
    values = [value for _, value in mean + largest if value > 0] or [GAP_LIMIT]
    return line_chart(
        "Absolute log-probability gap between sampler and trainer in every GRPO step",
        [
            Series(label="largest", points=largest, style="plain"),
            Series(label="mean", points=mean),
        ],
        step_axis(len(steps), "GRPO step"),
        log_axis("|log-prob gap|, nats", max(1e-12, min(values)), max(GAP_LIMIT, *values)),
        [Rule(label="limit 10⁻⁴", value=GAP_LIMIT)],
    )


def _column(steps: Sequence[dict[str, Any]], name: str) -> list[Point]:
    return [(float(step["step"]), float(step[name])) for step in steps if step.get(name) is not None]
