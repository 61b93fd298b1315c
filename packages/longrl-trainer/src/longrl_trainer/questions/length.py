"""The maximum length of a prompt, and which questions exceed it.

A prompt and its response must fit the positions that the model was trained for and, while sampling, the sampler's
memory for keys and values. The first is counted in positions, the second in tokens: where positions have several axes
an hour of video takes 200,000 tokens but few positions, because the tokens of a frame share theirs in time. Lengths
are exact and known before anything is encoded, so a question that is too long costs nothing except its own line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from longrl_trainer.config.sections import DataSection, SamplerSection
from longrl_trainer.questions.question import DroppedMedium, DropReason
from longvideo_reason_data.records.answers import format_prompt
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.base import Policy

PAGE_TOKENS = 128
"""Tokens of a page of vLLM's memory on CPUs, where pages are largest; it reserves one page."""

MOST_TOKENS = 2**24
"""Where neither positions nor a sampler bound them."""

ResponseTokens = Callable[[QuestionRecord], int]
"""Maximum tokens of the response to a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """A length that exceeds a limit.

    Attributes:
        length: Of a prompt with its response.
        unit: What it is counted in.
        bound: The limit, and where it comes from.
        setting: The setting that raises it, if there is one.
        is_time: Whether it is the time that a video takes, which fewer frames don't shorten.
    """

    length: int
    unit: str
    bound: str
    setting: str | None = None
    is_time: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLimit:
    """Maximum length of a prompt with its response.

    Attributes:
        positions: That the model was trained for.
        tokens: That the model and the sampler can hold.
        memory_bytes: The sampler's setting, if that limits the tokens.
    """

    positions: int
    tokens: int
    memory_bytes: int | None = None

    @classmethod
    def of(cls, policy: Policy, sampler: SamplerSection | None) -> "LengthLimit":
        """The limits of the model and of what samples from it."""
        tokens = policy.max_positions if policy.has_one_axis else MOST_TOKENS
        limit = cls(positions=policy.max_positions, tokens=tokens)
        if sampler is None or sampler.engine != "vllm":
            return limit
        num_pages = sampler.memory_bytes // (policy.key_value_bytes * PAGE_TOKENS) - 1
        room = max(0, num_pages * PAGE_TOKENS)
        return limit if room >= tokens else replace(limit, tokens=room, memory_bytes=sampler.memory_bytes)

    def find_excess(self, tokens: int, positions: int, response_tokens: int) -> Excess | None:
        """Which limit a prompt of these tokens and positions exceeds with its response, if it does."""
        if positions + response_tokens > self.positions:
            return Excess(
                length=positions + response_tokens,
                unit="tokens" if positions == tokens else "positions",
                bound=f"{self.positions} positions the model was trained for",
                is_time=positions > tokens,
            )
        if tokens + response_tokens > self.tokens:
            bound = f"{self.tokens} that sampler.memory_bytes={self.memory_bytes} has room for"
            return Excess(length=tokens + response_tokens, unit="tokens", bound=bound, setting="sampler.memory_bytes")
        return None


class PromptLengths:
    """Measures prompts, and records the longest that fits and the longest that doesn't.

    Args:
        policy: Builds the prompts.
        data: Settings of the prompts.
        limit: Maximum length including the response.
        response_tokens: Maximum length of a response.
    """

    def __init__(self, policy: Policy, data: DataSection, limit: LengthLimit, response_tokens: ResponseTokens) -> None:
        self._policy = policy
        self._data = data
        self._response_tokens = response_tokens
        self._refused: list[Excess] = []
        self.limit = limit
        self.longest_prompt = 0

    def find_problem(self, record: QuestionRecord, media: Sequence[MediaReference]) -> DroppedMedium | None:
        """Return what is wrong with the length of a question about these media, if anything is."""
        prompt, excess = self._measure(record, media)
        if excess is None:
            self.longest_prompt = max(self.longest_prompt, prompt)
            return None
        self._refused = [max([*self._refused, excess], key=lambda found: found.length)]
        response = self._response_tokens(record)
        detail = (
            f"its prompt has {excess.length - response} {excess.unit} and its response up to {response}, together more "
            f"than the {excess.bound}; {self._describe_cure(excess)}"
        )
        return DroppedMedium(reason=DropReason.PROMPT_TOO_LONG, detail=detail)

    def fits(self, record: QuestionRecord, media: Sequence[MediaReference]) -> bool:
        """Whether a question about these media, and no others, is short enough."""
        return self._measure(record, media)[1] is None

    def describe_refused(self, count: int, total: int) -> str:
        """One line for all questions that are too long."""
        [longest] = self._refused
        return (
            f"{count} of {total} questions are too long: up to {longest.length} {longest.unit} with the response, more "
            f"than the {longest.bound}; {self._describe_cure(longest)}"
        )

    def _measure(self, record: QuestionRecord, media: Sequence[MediaReference]) -> tuple[int, Excess | None]:
        """The tokens of a prompt, and which limit it exceeds with its response, if it does."""
        text, system = format_prompt(record.question, record.options), self._data.system
        tokens = self._policy.prompt_length(text, media, system=system)
        positions = self._policy.prompt_positions(text, media, system=system)
        return tokens, self.limit.find_excess(tokens, positions, self._response_tokens(record))

    def _describe_cure(self, excess: Excess) -> str:
        """The settings that make prompts shorter, or raise the limit."""
        encoder = self._policy.encoder
        if encoder is None:
            return "use a model for longer sequences"
        if excess.is_time:
            return "take shorter videos"
        settings = ["data.max_frames" if self._data.num_frames is None else "data.num_frames"]
        if not encoder.has_one_size:
            settings.append("data.frame_pixels")
        raised = "" if excess.setting is None else f", or raise {excess.setting}"
        return f"lower {' or '.join(settings)}{raised}"
