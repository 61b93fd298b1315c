"""A rank reads from the store the rows of its own tokens, and little else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mrsp_engine.distributed.process_groups import create_sequence_group
from mrsp_engine.embeddings import EmbeddingStore, entry_layout
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.testing.fixtures import NoiseVideo, run_on_ranks
from mrsp_engine.tiny.families import create_tiny_qwen3_vl

NUM_RANKS = 4
BRANCHES = [Branch(token_ids=(5, 6, 7, 8)), Branch(token_ids=(9, 10))]


def show_two_videos(policy: Policy) -> Prompt:
    """A prompt that is almost all media."""
    videos = [NoiseVideo(seed=seed, frame_count=120, height=112, width=112) for seed in (1, 2)]
    return policy.build_prompt("Which?", [policy.encode_video(video, range(120)) for video in videos])


def read_on_ranks(model_folder: str, folder: str) -> dict[str, Any]:
    """Bytes that this rank reads while all of them score one row, in blocks as small as the model."""
    entry_layout.BLOCK_BYTES = 1 << 12
    group = create_sequence_group(dist.get_world_size())
    store = EmbeddingStore(Path(folder))
    policy = load_policy(Path(model_folder), dtype=torch.float64, store=store)
    prompt = show_two_videos(policy)
    before = store.counters.bytes_read
    with torch.no_grad():
        scores = score_branches(policy, prompt, BRANCHES, sequence_group=group)
    read = store.counters.bytes_read - before
    return {"read": read, "logprobs": torch.cat(scores.logprobs)}


@pytest.mark.slow
def test_bytes_read_follow_the_slice(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_layout, "BLOCK_BYTES", 1 << 12)
    store = EmbeddingStore(tmp_path)
    policy = load_policy(tiny_folder, dtype=torch.float64, store=store)
    prompt = show_two_videos(policy)
    with torch.no_grad():
        expected = torch.cat(score_branches(policy, prompt, BRANCHES).logprobs)
    whole = sum(store.path(medium.key).stat().st_size for medium in prompt.media)
    for seen in run_on_ranks(read_on_ranks, NUM_RANKS, str(tiny_folder), str(tmp_path)):
        torch.testing.assert_close(seen["logprobs"], expected)
        assert 0.9 / NUM_RANKS < seen["read"] / whole < 1.2 / NUM_RANKS


def test_some_rows_are_those_rows_of_the_whole(tmp_path: Path) -> None:
    """Where media lie in pieces between written times, and several of them follow each other."""
    create_tiny_qwen3_vl(tmp_path / "model")
    policy = load_policy(tmp_path / "model", dtype=torch.float64, store=EmbeddingStore(tmp_path / "embeddings"))
    media = [policy.encode_video(NoiseVideo(seed=seed, frame_count=6), range(6)) for seed in (1, 2)]
    prompt = policy.build_prompt("Which?", [media[0], policy.encode_image(NoiseVideo(frame_count=1)), media[1]])
    whole = policy.embed(prompt)
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        tokens = torch.nonzero(torch.rand(prompt.length, generator=generator) < share).squeeze(1)
        assert torch.equal(policy.embed_rows(prompt, tokens), whole[tokens])
