"""An estimate of what a build will ask, as figures and as lines: calls, tokens, cost and time.

How the calls and their tokens come about is in `longvideo_reason_data.pipeline.workload`. Time rests on an assumed
speed of the server, which is told with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.language_model.accounts.prices import TokenPrice

PATCH_PIXELS = 28
READ_PER_SECOND, WRITTEN_PER_SECOND = 4000.0, 50.0
"""The assumed speed with which a server serves one of several requests at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedWork:
    """Calls of one kind.

    Attributes:
        name: What they are for.
        model: Who is asked.
        calls: How many.
        prompt_tokens: Tokens read by all of them.
        completion_tokens: Tokens written.
        num_parallel: How many can be under way at a time.
    """

    name: str
    model: str
    calls: int
    prompt_tokens: float
    completion_tokens: float
    num_parallel: int

    @property
    def seconds(self) -> float:
        """Time at the assumed speed."""
        spent = self.prompt_tokens / READ_PER_SECOND + self.completion_tokens / WRITTEN_PER_SECOND
        return spent / self.num_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEstimate:
    """What a build will ask.

    Attributes:
        num_videos: Videos.
        hours: Their length together.
        num_segments: Segments to describe.
        num_questions: Questions to ask for.
        works: The calls by kind.
        settings: Limits on speed.
        prices: Price of each model; empty if not known.
    """

    num_videos: int
    hours: float
    num_segments: int
    num_questions: int
    works: tuple[EstimatedWork, ...]
    settings: BuildSettings
    prices: Mapping[str, TokenPrice] = field(default_factory=dict[str, TokenPrice])

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(work.calls for work in self.works)

    @property
    def prompt_tokens(self) -> float:
        """All tokens read."""
        return sum(work.prompt_tokens for work in self.works)

    @property
    def completion_tokens(self) -> float:
        """All tokens written."""
        return sum(work.completion_tokens for work in self.works)

    @property
    def cost(self) -> float | None:
        """The price of all of them; None if prices aren't known."""
        if not self.prices:
            return None
        return sum(
            (
                work.prompt_tokens * float(self.prices[work.model].prompt)
                + work.completion_tokens * float(self.prices[work.model].completion)
            )
            / 1e6
            for work in self.works
        )

    @property
    def seconds(self) -> float:
        """Time at the assumed speed, within the limits per minute."""
        times = [sum(work.seconds for work in self.works)]
        if self.settings.requests_per_minute is not None:
            times.append(60 * self.calls / self.settings.requests_per_minute)
        if self.settings.tokens_per_minute is not None:
            times.append(60 * (self.prompt_tokens + self.completion_tokens) / self.settings.tokens_per_minute)
        return max(times)

    def lines(self) -> list[str]:
        """The estimate for people."""
        told = [
            f"estimate: {self.num_videos} videos of {self.hours:.2f} hours, {self.num_segments} segments, "
            f"{self.num_questions} questions; if every question is kept, otherwise less"
        ]
        told += [
            f"  {work.name:<13} {work.calls:>9,} calls {_millions(work.prompt_tokens)} tokens read "
            f"{_millions(work.completion_tokens)} written, by {work.model}"
            for work in self.works
            if work.calls
        ]
        cost = "" if self.cost is None else f", cost {self.cost:.2f}"
        told.append(
            f"  {'all':<13} {self.calls:>9,} calls {_millions(self.prompt_tokens)} tokens read "
            f"{_millions(self.completion_tokens)} written{cost}, {_duration(self.seconds)}"
        )
        told.append(
            f"  assumed: {PATCH_PIXELS} x {PATCH_PIXELS} pixels a token, and a server that reads {READ_PER_SECOND:.0f} "
            f"and writes {WRITTEN_PER_SECOND:.0f} tokens per second for each of {self.settings.num_parallel} requests"
        )
        if self.cost is None:
            told[-1] += "; with --prompt-price and --completion-price also the cost"
        return told


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:>9.3f} M"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
