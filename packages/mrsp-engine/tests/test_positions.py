"""Positions follow the sampler's rule, implemented here a second time in another way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.positions import continue_positions, qwen2_5_vl_positions

PLACEHOLDER = 7


def medium(frames: int, height: int, width: int, seconds: float) -> MediaReference:
    return MediaReference(
        key="0" * 64,
        grid_thw=(frames, 2 * height, 2 * width),
        seconds_per_grid=seconds,
        num_tokens=frames * height * width,
    )


def token_by_token(parts: list[int | MediaReference], tokens_per_second: float) -> list[tuple[int, int, int]]:
    """Walk over the prompt one token at a time; text is given by its length."""
    positions: list[tuple[int, int, int]] = []
    for part in parts:
        start = max((max(position) for position in positions), default=-1) + 1
        if isinstance(part, int):
            positions += [(start + step,) * 3 for step in range(part)]
            continue
        frames, height, width = part.grid_thw[0], part.grid_thw[1] // 2, part.grid_thw[2] // 2
        for frame in range(frames):
            moment = int(frame * (part.seconds_per_grid * tokens_per_second))
            for row in range(height):
                positions += [(start + moment, start + row, start + column) for column in range(width)]
    return positions


media = st.builds(medium, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 30.0))
prompts = st.lists(st.one_of(st.integers(1, 6), media), min_size=1, max_size=6)


@given(prompts, st.sampled_from([1, 2, 4]))
def test_matches_the_rule(parts: list[int | MediaReference], tokens_per_second: int) -> None:
    token_ids: list[int] = []
    for part in parts:
        token_ids += [1] * part if isinstance(part, int) else [PLACEHOLDER] * part.num_tokens
    positions = qwen2_5_vl_positions(
        token_ids,
        [part for part in parts if isinstance(part, MediaReference)],
        placeholder_id=PLACEHOLDER,
        merge_size=2,
        tokens_per_second=tokens_per_second,
    )
    assert positions.T.tolist() == [list(position) for position in token_by_token(parts, tokens_per_second)]


def test_text_starts_behind_the_longest_axis() -> None:
    hour = medium(frames=1800, height=2, width=3, seconds=2.0)
    positions = qwen2_5_vl_positions(
        [1, *[PLACEHOLDER] * hour.num_tokens, 1], [hour], placeholder_id=PLACEHOLDER, merge_size=2, tokens_per_second=2
    )
    assert positions[:, -1].tolist() == [1 + 1799 * 4 + 1] * 3


def test_fractional_interval_is_multiplied_before_truncation() -> None:
    positions = qwen2_5_vl_positions(
        [PLACEHOLDER] * 5, [medium(5, 1, 1, seconds=0.4)], placeholder_id=PLACEHOLDER, merge_size=2, tokens_per_second=2
    )
    assert positions[0].tolist() == [0, 0, 1, 2, 3]


def test_branches_restart_behind_the_prompt() -> None:
    prompt = torch.tensor([[0, 1, 9, 9], [0, 1, 2, 2], [0, 1, 2, 3]])
    row = continue_positions(prompt, (2, 0, 3))
    assert row[:, :4].equal(prompt)
    assert row[:, 4:].tolist() == [[10, 11, 10, 11, 12]] * 3


@pytest.mark.parametrize("num_media", [0, 2])
def test_media_and_placeholders_must_agree(num_media: int) -> None:
    with pytest.raises(ValueError, match="media"):
        qwen2_5_vl_positions(
            [1, PLACEHOLDER, 1],
            [medium(1, 1, 1, 1.0)] * num_media,
            placeholder_id=PLACEHOLDER,
            merge_size=2,
            tokens_per_second=2,
        )
