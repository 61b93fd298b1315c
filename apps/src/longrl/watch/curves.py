"""Which numbers of a run's journal are drawn together, and under what name."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Attributes:
        title: What it shows.
        patterns: Which numbers, by their dotted names in the journal; `*` stands for anything.
        unit: Unit of the numbers; empty for shares and the like.
    """

    title: str
    patterns: tuple[str, ...]
    unit: str = ""


PANELS = (
    Panel("Reward and its terms", ("reward", "rewards.*")),
    Panel("Accuracy, form, finished", ("accuracy", "format_rate", "finished_rate")),
    Panel("Accuracy on held-out questions", ("evaluation.accuracy", "evaluation.accuracy_standard_error")),
    Panel("Answers to held-out questions", ("evaluation.unparsed_rate", "evaluation.finished_rate"), "share"),
    Panel("Held-out questions", ("evaluation.*",)),
    Panel("Loss", ("loss",)),
    Panel("Response length", ("response_tokens",), "tokens"),
    Panel("Ordered and shuffled frames", ("temporal.ordered*", "temporal.shuffled")),
    Panel("Weight of prompts by order", ("temporal.weight",)),
    Panel("Entropy", ("entropy",), "nats"),
    Panel("Clipped tokens", ("clip_fraction", "capped_weight_fraction"), "share"),
    Panel("Log-probability gap to the sampler", ("logprob_gap.*",), "nats"),
    Panel("KL to the reference", ("kl",), "nats"),
    Panel("Gradient norm", ("gradient_norm",)),
    Panel("Learning rate", ("learning_rate",)),
    Panel("Tokens per second", ("tokens_per_second.*",)),
    Panel("Tokens of a step", ("row_tokens.*",), "tokens"),
    Panel("Utilisation and waiting", ("utilisation", "padding_fraction"), "share"),
    Panel("Media looked for in the store", ("store.*",)),
    Panel("Moved", ("moved_bytes.*",), "bytes"),
    Panel("Seconds by stage", ("seconds", "seconds.*"), "s"),
    Panel("Memory", ("*_bytes",), "bytes"),
)


def arrange(names: Iterable[str]) -> list[tuple[Panel, list[str]]]:
    """Put each number into its chart; those that no chart asks for get one each, after the others.

    Args:
        names: Dotted names, without `step`.
    """
    remaining = list(dict.fromkeys(names))
    arranged: list[tuple[Panel, list[str]]] = []
    for panel in PANELS:
        own = [name for name in remaining if any(fnmatchcase(name, pattern) for pattern in panel.patterns)]
        if own:
            arranged.append((panel, own))
            remaining = [name for name in remaining if name not in own]
    return arranged + [(Panel(name, (name,)), [name]) for name in remaining]
