"""Rotary positions, computed once and used by both sampler and trainer.

transformers (since 5.3) starts the text after a video at the video's spatial extent; Qwen2.5-VL was trained, and vLLM
samples, with text starting after the largest index of any axis. For an hour of video the two are thousands apart, so
the engine computes positions itself and never uses the model's.

Shape legend: P prompt tokens, S tokens of a packed row.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkerClock:
    """How Qwen2.5-Omni counts time.

    Attributes:
        merge_size: Patches along an edge that become one embedding.
        places_per_second: Positions per second of video.
        places_per_chunk: Positions of a chunk of a film, in which pictures come before sound.
    """

    merge_size: int
    places_per_second: float
    places_per_chunk: int


FILM_SOUND = "audio_in_video"
"""Modality of the sound of the video before it; both are written as one film."""


def film_runs(
    num_groups: int, rows_per_group: int, num_sounds: int, seconds_per_grid: float, clock: ThinkerClock
) -> Iterator[tuple[bool, int, int]]:
    """The order in which the rows of a film's pictures and of its sound are written.

    Yields:
        Whether the rows are of the sound, the first of them, and the one after the last. A chunk has the pictures of
        its time and then its sound; where one of them ends earlier the other goes on alone.
    """
    places = _group_places(num_groups, seconds_per_grid, clock.places_per_second)
    length = clock.places_per_chunk
    num_chunks = max(int(places[-1]) // length + 1, -(-num_sounds // length))
    for start in range(0, num_chunks * length, length):
        first, last = (int(bound) for bound in np.searchsorted(places, (start, start + length)))
        if first < last:
            yield False, first * rows_per_group, last * rows_per_group
        if start < num_sounds:
            yield True, start, min(start + length, num_sounds)


def qwen2_5_omni_positions(
    expanded_ids: Sequence[int],
    media: Sequence[MediaReference],
    *,
    placeholder_ids: Collection[int],
    clock: ThinkerClock,
) -> Tensor:
    """Positions of an expanded prompt of Qwen2.5-Omni's thinker: int64 [3, P].

    Videos and images have positions as in Qwen2.5-VL. Every row of a recording advances all axes by one, and lasts as
    long (40 ms) as a position. In a film pictures and sound start at the same position; the markers of both before them
    share one, as do those behind them, which come one after the largest index of the last run (`film_runs`).
    """
    pieces: list[npt.NDArray[np.int64]] = []
    cursor, start, is_behind_film = 0, 0, False
    films = _films(media)
    place = 0
    while cursor < len(expanded_ids):
        if expanded_ids[cursor] in placeholder_ids:
            if place == len(films):
                raise ValueError(f"placeholder at token {cursor} has no medium; {len(media)} media were given")
            runs = _film_positions(*films[place], clock=clock)
            pieces += [run + start for run in runs]
            cursor += sum(run.shape[1] for run in runs)
            start += int(runs[-1].max()) + 1
            is_behind_film = films[place][1] is not None
            place += 1
            continue
        end = cursor
        while end < len(expanded_ids) and expanded_ids[end] not in placeholder_ids:
            end += 1
        steps = np.ones(end - cursor, np.int64)
        steps[0] = 0
        if is_behind_film and len(steps) > 1:
            steps[1] = 0
        if end < len(expanded_ids) and place < len(films) and films[place][1] is not None:
            steps[-1] = 0
        piece = np.broadcast_to(steps.cumsum(), (3, len(steps)))
        pieces.append(piece + start)
        start += int(piece[0, -1]) + 1
        cursor, is_behind_film = end, False
    if cursor != len(expanded_ids) or place != len(films):
        raise ValueError(f"{len(media)} media don't match the placeholders of a {len(expanded_ids)}-token prompt")
    return torch.from_numpy(np.concatenate(pieces, axis=1)) if pieces else torch.empty((3, 0), dtype=torch.int64)


def qwen2_5_omni_extent(medium: MediaReference, sound: MediaReference | None = None, *, clock: ThinkerClock) -> int:
    """Number of positions that a medium takes in `qwen2_5_omni_positions`, or a film without its two shared markers."""
    if medium.modality == "audio":
        return medium.num_tokens
    extent = qwen2_5_vl_extent(medium, merge_size=clock.merge_size, tokens_per_second=clock.places_per_second)
    return extent if sound is None else max(extent, sound.num_tokens) - 2


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
    grid[0] = _group_places(frames, medium.seconds_per_grid, tokens_per_second)[:, None, None]
    return grid.reshape(3, -1)


def _group_places(num_groups: int, seconds_per_grid: float, places_per_second: float) -> npt.NDArray[np.int64]:
    """Temporal position of every group of frames of a video, [G]."""
    return (np.arange(num_groups) * (seconds_per_grid * places_per_second)).astype(np.int64)


def _films(media: Sequence[MediaReference]) -> list[tuple[MediaReference, MediaReference | None]]:
    """Every medium, a video together with the sound that follows it."""
    films: list[tuple[MediaReference, MediaReference | None]] = []
    for medium in media:
        if medium.modality != FILM_SOUND:
            films.append((medium, None))
            continue
        if not films or films[-1][0].modality != "video" or films[-1][1] is not None:
            raise ValueError("the sound of a film has no video before it")
        films[-1] = films[-1][0], medium
    return films


def _film_positions(
    medium: MediaReference, sound: MediaReference | None, *, clock: ThinkerClock
) -> list[npt.NDArray[np.int64]]:
    """Positions of the rows of a medium or a film, from 0, run by run."""
    if medium.modality == "audio":
        return [np.broadcast_to(np.arange(medium.num_tokens), (3, medium.num_tokens))]
    seen = _medium_positions(medium, merge_size=clock.merge_size, tokens_per_second=clock.places_per_second)
    if sound is None:
        return [seen]
    heard = np.broadcast_to(np.arange(sound.num_tokens), (3, sound.num_tokens))
    groups = medium.grid_thw[0]
    runs = film_runs(groups, seen.shape[1] // groups, sound.num_tokens, medium.seconds_per_grid, clock)
    return [(heard if is_sound else seen)[:, first:last] for is_sound, first, last in runs]
