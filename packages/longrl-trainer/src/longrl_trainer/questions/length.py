"""The maximum length of a prompt, and which questions exceed it.

A prompt and its response must fit the positions that the model was trained for and, while sampling, the sampler's
memory for keys and values. Lengths are exact and known before anything is encoded, so a question that is too long costs
nothing except its own line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longrl_trainer.config.sections import DataSection, SamplerSection
from longrl_trainer.questions.question import DroppedMedium, DropReason
from longvideo_reason_data.records.answers import format_prompt
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.base import Policy

PAGE_TOKENS = 128
"""Tokens of a page of vLLM's memory on CPUs, where pages are largest; it reserves one page."""

ResponseTokens = Callable[[QuestionRecord], int]
"""Maximum tokens of the response to a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLimit:
    """Maximum tokens of a prompt with its response, and what sets this limit."""

    tokens: int
    meaning: str

    @classmethod
    def of(cls, policy: Policy, sampler: SamplerSection | None) -> "LengthLimit":
        """The model's limit or, if lower, the sampler's."""
        limit = cls(tokens=policy.max_positions, meaning="positions the model was trained for")
        if sampler is None or sampler.engine != "vllm":
            return limit
        num_pages = sampler.memory_bytes // (policy.key_value_bytes * PAGE_TOKENS) - 1
        room = max(0, num_pages * PAGE_TOKENS)
        if room >= limit.tokens:
            return limit
        return cls(tokens=room, meaning=f"that sampler.memory_bytes={sampler.memory_bytes} has room for")


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
        self.limit = limit
        self.longest_prompt = 0
        self.longest_refused = 0

    def find_problem(self, record: QuestionRecord, media: Sequence[MediaReference]) -> DroppedMedium | None:
        """Return what is wrong with the length of a question about these media, if anything is."""
        text = format_prompt(record.question, record.options)
        prompt = self._policy.prompt_length(text, media, system=self._data.system)
        response = self._response_tokens(record)
        if prompt + response <= self.limit.tokens:
            self.longest_prompt = max(self.longest_prompt, prompt)
            return None
        self.longest_refused = max(self.longest_refused, prompt + response)
        detail = (
            f"its prompt has {prompt} tokens and its response up to {response}, together more than the "
            f"{self.limit.tokens} {self.limit.meaning}; {self.describe_cure()}"
        )
        return DroppedMedium(reason=DropReason.PROMPT_TOO_LONG, detail=detail)

    def fits(self, record: QuestionRecord, media: Sequence[MediaReference]) -> bool:
        """Whether a question about these media, and no others, is short enough."""
        text = format_prompt(record.question, record.options)
        prompt = self._policy.prompt_length(text, media, system=self._data.system)
        return prompt + self._response_tokens(record) <= self.limit.tokens

    def describe_refused(self, count: int, total: int) -> str:
        """One line for all questions that are too long."""
        return (
            f"{count} of {total} questions are too long: up to {self.longest_refused} tokens with the response, more "
            f"than the {self.limit.tokens} {self.limit.meaning}; {self.describe_cure()}"
        )

    def describe_cure(self) -> str:
        """The settings that make prompts shorter."""
        encoder = self._policy.encoder
        if encoder is None:
            return "use a model for longer sequences"
        settings = ["data.max_frames" if self._data.num_frames is None else "data.num_frames"]
        if not encoder.has_one_size:
            settings.append("data.frame_pixels")
        return f"lower {' or '.join(settings)}"
