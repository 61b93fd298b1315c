"""A prompt, shared by sampler and trainer: tokens, positions and references to media, built once.

How a family writes media in it and counts positions is described here too; `mrsp_engine.families` has the descriptions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One tokenised prompt. Compared by identity, since it holds a tensor.

    Attributes:
        token_ids: One placeholder token per medium: the sampler's input, which it expands itself.
        expanded_ids: One placeholder token per embedding row: the trainer's input. Length P.
        positions: Rotary positions, int64, shape [3, P] (or [1, P] for families with one-dimensional positions).
        media: The media in the order of their placeholders.
    """

    token_ids: tuple[int, ...]
    expanded_ids: tuple[int, ...]
    positions: Tensor
    media: tuple[MediaReference, ...]

    @property
    def length(self) -> int:
        """Number of tokens P that the model computes."""
        return len(self.expanded_ids)


Stretch = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens before and after a run of embedding rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRule:
    """How a family counts positions.

    Attributes:
        place: From the expanded tokens of a prompt and its media to its positions, int64 [axes, P].
        extent: Number of positions that the embedding rows of a medium take, and those of its companion with it.
    """

    place: Callable[[Sequence[int], Sequence[MediaReference]], Tensor]
    extent: Callable[..., int]


def _count_rows(medium: MediaReference) -> int:
    return medium.num_tokens


ONE_AXIS = PositionRule(place=lambda expanded_ids, media: torch.arange(len(expanded_ids))[None], extent=_count_rows)
"""Of models with one axis, which every token advances by one; [1, P]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """Media that are written inside of others, such as the sound of a film.

    Attributes:
        modality: Their modality; such a medium comes right after the one that it is written in.
        placeholder_id: Token that represents their rows.
        write: From both media to all tokens of both in an expanded prompt.
    """

    modality: str
    placeholder_id: int
    write: Callable[[MediaReference, MediaReference], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaTokens:
    """How media of one modality are written in a prompt.

    Attributes:
        part: What the chat template is given for a medium: a content part such as `{"type": "video"}`, or the
            characters themselves for templates that accept only text.
        written: Tokens that the template writes for it, including the placeholder.
        placeholder_id: Token that represents embedding rows.
        stretches: The tokens before and after each run of rows in an expanded prompt; all runs have the same number of
            rows. If None, one run between the tokens that `written` has around the placeholder.
        sampled: What replaces `written` in the sampler's prompt; unchanged if None.
        companion: Media that may be written inside of one of these.
    """

    part: dict[str, str] | str
    written: tuple[int, ...]
    placeholder_id: int
    stretches: Callable[[MediaReference], Sequence[Stretch]] | None = None
    sampled: tuple[int, ...] | None = None
    companion: Companion | None = None

    def expanded(self, medium: MediaReference, inside: MediaReference | None = None) -> tuple[int, ...]:
        """The tokens of one medium, and of its companion, with a placeholder per embedding row."""
        if inside is not None and self.companion is not None:
            return self.companion.write(medium, inside)
        stretches = self._stretches(medium)
        rows = (self.placeholder_id,) * (medium.num_tokens // len(stretches))
        return tuple(token for before, behind in stretches for token in (*before, *rows, *behind))

    def length(self, medium: MediaReference, inside: MediaReference | None = None) -> int:
        """Number of those tokens; without a companion they aren't built."""
        if inside is not None:
            return len(self.expanded(medium, inside))
        return medium.num_tokens + sum(len(before) + len(behind) for before, behind in self._stretches(medium))

    def _stretches(self, medium: MediaReference) -> Sequence[Stretch]:
        if self.stretches is not None:
            return self.stretches(medium)
        place = self.written.index(self.placeholder_id)
        return [(self.written[:place], self.written[place + 1 :])]
