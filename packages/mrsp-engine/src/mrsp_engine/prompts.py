"""A prompt, shared by sampler and trainer: tokens, positions and references to media, built once."""

from dataclasses import dataclass

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
