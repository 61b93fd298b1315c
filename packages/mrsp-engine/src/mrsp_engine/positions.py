"""Rotary positions, computed once and used by both sampler and trainer.

transformers (since 5.3) starts the text after a video at the video's spatial extent; Qwen2.5-VL was trained, and vLLM
samples, with text starting after the largest index of any axis. For an hour of video the two are thousands apart, so
the engine computes positions itself and never uses the model's.

Shape legend: P prompt tokens, S tokens of a packed row.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference


def qwen2_5_vl_positions(
    expanded_ids: Sequence[int],
    media: Sequence[MediaReference],
    *,
    placeholder_id: int,
    merge_size: int,
    tokens_per_second: float,
) -> Tensor:
    """Positions of an expanded prompt in time, height and width: int64 [3, P].

    Text advances all three axes together. A medium's temporal axis advances by `seconds_per_grid × tokens_per_second`
    per temporal patch, truncated only after multiplying by the patch's index; its spatial axes count merged patches.
    What follows starts one after the largest index used so far.
    """
    pieces: list[npt.NDArray[np.int64]] = []
    cursor, start = 0, 0  # next token, next free index
    remaining = iter(media)
    while cursor < len(expanded_ids):
        if expanded_ids[cursor] == placeholder_id:
            medium = next(remaining, None)
            if medium is None:
                raise ValueError(f"placeholder at token {cursor} has no medium; {len(media)} media were given")
            piece = _medium_positions(medium, merge_size=merge_size, tokens_per_second=tokens_per_second)
        else:
            length = _text_length(expanded_ids, cursor, placeholder_id)
            piece = np.broadcast_to(np.arange(length), (3, length))
        pieces.append(piece + start)
        cursor += piece.shape[1]
        start += int(piece.max()) + 1
    if cursor != len(expanded_ids) or next(remaining, None) is not None:
        raise ValueError(f"{len(media)} media don't match the placeholders of a {len(expanded_ids)}-token prompt")
    return torch.from_numpy(np.concatenate(pieces, axis=1)) if pieces else torch.empty((3, 0), dtype=torch.int64)


def qwen2_5_vl_extent(medium: MediaReference, *, merge_size: int, tokens_per_second: float) -> int:
    """Number of positions that a medium takes in `qwen2_5_vl_positions`: its rows, or its time where that is longer."""
    frames, height, width = medium.grid_thw
    last = int((frames - 1) * (medium.seconds_per_grid * tokens_per_second))
    return max(last + 1, height // merge_size, width // merge_size)


def qwen3_vl_positions(
    expanded_ids: Sequence[int], media: Sequence[MediaReference], *, placeholder_ids: Collection[int], merge_size: int
) -> Tensor:
    """Positions of an expanded prompt of Qwen3-VL: int64 [3, P].

    Time is written as text between temporal patches, so every patch has positions like an image: its rows share one
    temporal position, and what follows starts one after its largest index.
    """
    one = min(placeholder_ids)
    patches = [
        replace(medium, grid_thw=(1, *medium.grid_thw[1:])) for medium in media for _ in range(medium.grid_thw[0])
    ]
    merged_ids = [one if token in placeholder_ids else token for token in expanded_ids]
    return qwen2_5_vl_positions(merged_ids, patches, placeholder_id=one, merge_size=merge_size, tokens_per_second=1.0)


def qwen3_vl_extent(medium: MediaReference, *, merge_size: int) -> int:
    """Number of positions that the embeddings of a medium take in `qwen3_vl_positions`, without the times between."""
    frames, height, width = medium.grid_thw
    return frames * (max(height, width) // merge_size)


def continue_positions(prompt_positions: Tensor, branch_lengths: Sequence[int]) -> Tensor:
    """Positions of a whole packed row: [3, P] to [3, S]; every branch starts one after the prompt's largest index."""
    start = int(prompt_positions.max()) + 1
    branches = [torch.arange(start, start + length, device=prompt_positions.device) for length in branch_lengths]
    rows = prompt_positions.shape[0]
    return torch.cat([prompt_positions, *(branch.expand(rows, -1) for branch in branches)], dim=1)


def _text_length(expanded_ids: Sequence[int], start: int, placeholder_id: int) -> int:
    end = start
    while end < len(expanded_ids) and expanded_ids[end] != placeholder_id:
        end += 1
    return end - start


def _medium_positions(medium: MediaReference, *, merge_size: int, tokens_per_second: float) -> npt.NDArray[np.int64]:
    frames, height, width = medium.grid_thw
    grid = np.indices((frames, height // merge_size, width // merge_size)).astype(np.int64)
    grid[0] = (grid[0] * (medium.seconds_per_grid * tokens_per_second)).astype(np.int64)
    return grid.reshape(3, -1)
