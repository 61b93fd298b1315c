"""How right the model's sampled answers were while it learned by reward: each step, the mean of many, and the noise.

A step asks few questions, and other ones than the step before, so its accuracy says little: the curve shows how far a
single step is expected to lie from the mean by chance alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from longrl.report.charts import Rule, Series, line_chart, linear_axis, smooth, step_axis
from longrl.report.run_data import RunData
from longrl_trainer.evaluation.scoring.statistics import mean

STEPS_PER_HALF_WINDOW = 20
"""A running mean spans about a tenth of all steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurve:
    """The curve, and what its words need.

    Attributes:
        chart: The drawing.
        num_steps_in_mean: Steps that a point of the line is the mean of.
        num_groups: Questions in the last step.
        standard_error: Of the accuracy of the last step; None if it isn't known.
    """

    chart: Markup
    num_steps_in_mean: int
    num_groups: int
    standard_error: float | None


def draw_learning_curve(run: RunData) -> LearningCurve | None:
    """Draw the accuracy of every step of GRPO; None if its questions have no options to be right about."""
    steps = [step for step in run.grpo_steps if step.get("accuracy") is not None]
    if not steps:
        return None
    points = [(float(step["step"]), float(step["accuracy"])) for step in steps]
    half_width = len(steps) // STEPS_PER_HALF_WINDOW
    line = smooth(points, half_width)
    variance = variance_of_groups(run.rollouts)
    errors = [] if variance is None else [math.sqrt(variance / step["groups"]) for step in steps]
    asked = {name: run.on_rl_questions[model]["accuracy"] for name, model in _RULES if model in run.on_rl_questions}
    values = [value for _, value in points] + list(asked.values())
    values += [value + sign * error for (_, value), error in zip(line, errors, strict=False) for sign in (-1, 1)]
    chart = line_chart(
        "Accuracy of sampled answers in every GRPO step, and its running mean",
        [
            Series(label="", points=line, band=errors),
            Series(label="", points=points, style="plain", has_dots=True, is_joined=False),
        ],
        step_axis(len(run.grpo_steps), "GRPO step"),
        linear_axis("accuracy of sampled answers", max(0.0, min(values)), min(1.0, max(values)), is_share=True),
        [Rule(label=name, value=value) for name, value in asked.items()],
    )
    return LearningCurve(
        chart=chart,
        num_steps_in_mean=2 * half_width + 1,
        num_groups=int(steps[-1]["groups"]),
        standard_error=errors[-1] if errors else None,
    )


_RULES = (("before", "sft"), ("after", "grpo"))


def variance_of_groups(groups: Sequence[Mapping[str, Any]]) -> float | None:
    """Variance of the share of right answers to a question, over the questions whose responses were kept.

    The standard error of a step is the root of this by its number of questions: the responses to one question aren't
    independent. None if fewer than two were kept.
    """
    shares = [
        mean([float(response["parsed"] == group["answer"]) for response in group["responses"]])
        for group in groups
        if group["options"]
    ]
    if len(shares) < 2:
        return None
    center = mean(shares)
    return math.fsum((share - center) ** 2 for share in shares) / (len(shares) - 1)
