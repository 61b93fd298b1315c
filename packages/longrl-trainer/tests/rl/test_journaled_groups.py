"""How responses are kept for people: every token with its gap, and no character in pieces."""

import pytest
import torch
from transformers import AutoTokenizer

from longrl_trainer.rl.journaled_groups import token_pieces
from longrl_trainer.rl.step_metrics import TokenStatistics


@pytest.fixture(scope="module")
def tokenizer(started):
    return AutoTokenizer.from_pretrained(started.model)


@pytest.mark.parametrize("text", ["The cook left.", "é 東京 🎬🎬 end", "<|video_pad|> B<|im_end|>"])
def test_pieces_are_whole_characters_and_together_the_text(tokenizer, text):
    token_ids = tokenizer(text).input_ids
    gaps = [place / 100 * (-1) ** place for place in range(len(token_ids))]
    pieces = token_pieces(tokenizer, token_ids, gaps)
    assert "".join(piece for piece, _ in pieces) == text
    assert not any("\ufffd" in piece for piece, _ in pieces)
    assert {gap for _, gap in pieces} <= set(gaps)
    assert max((gap for _, gap in pieces), key=abs) == gaps[-1]


def test_a_response_that_ends_inside_a_character_is_kept(tokenizer):
    token_ids = tokenizer("🎬").input_ids[:-1]
    assert token_ids
    assert token_pieces(tokenizer, token_ids, [0.0] * len(token_ids))[-1][0]


def test_gaps_are_signed_and_joined_by_the_group_that_they_are_of():
    parts = [TokenStatistics() for _ in range(2)]
    parts[0].compare_with_sampler(torch.tensor([-1.0, -2.0]), [-1.5, -1.0], recorded_place=1)
    parts[1].compare_with_sampler(torch.tensor([-1.0]), [-1.0], recorded_place=0)
    parts[1].compare_with_sampler(torch.tensor([-3.0]), [-1.0])
    assert TokenStatistics.joined(parts).token_gaps == {1: [[0.5, -1.0]], 0: [[0.0]]}
