"""What is kept until the backward pass: a rank's share of the activations, and never the logits of many tokens."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrsp_engine.attention.split import AttentionSettings, Exchange
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.row_scorer import LOGIT_BYTES, row_scorer_of, token_logprobs
from mrsp_engine.testing.fixtures import run_on_ranks
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

NUM_RANKS = 4
SPLITS: tuple[tuple[int, Exchange], ...] = ((1, "gather"), (2, "ring"), (4, "gather"))
GIBIBYTE = 1 << 30


def kept_bytes(folder: str, group: SequenceGroup | None, settings: AttentionSettings) -> int:
    """Bytes of all storages that autograd keeps between forward and backward, excluding parameters."""
    policy = load_policy(Path(folder), store=EmbeddingStore(Path(folder).parent / "embeddings"))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    token_ids = tuple(index % 250 for index in range(1024))
    prompt = Prompt(token_ids=token_ids, expanded_ids=token_ids, positions=torch.arange(1024).expand(3, -1), media=())
    branches = [Branch(token_ids=token_ids[:length]) for length in (50, 30, 15, 33)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = score_branches(policy, prompt, branches, sequence_group=group, attention=settings)
        torch.cat(scores.logprobs).sum().backward()
    return sum(held.values())


def kept_by_split(folder: str) -> list[int]:
    group = SequenceGroup.of(dist.group.WORLD)
    return [
        kept_bytes(folder, group, AttentionSettings(head_ranks=head_ranks, exchange=exchange))
        for head_ranks, exchange in SPLITS
    ]


@pytest.mark.slow
def test_a_rank_of_four_keeps_a_quarter_of_the_activations(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    create_tiny_qwen2_5_vl(
        folder, corpus=["red"], hidden_size=128, num_heads=4, num_key_value_heads=4, num_layers=2, intermediate_size=256
    )
    alone = kept_bytes(str(folder), None, AttentionSettings())
    by_rank = run_on_ranks(kept_by_split, NUM_RANKS, str(folder))
    for split, of_ranks in zip(SPLITS, zip(*by_rank, strict=True), strict=True):
        assert max(of_ranks) / alone <= 1.1 / NUM_RANKS, split


def peak_bytes_of_scoring(num_tokens: int, vocabulary: int, channels: int) -> int:
    """By how much scoring, forward and backward, raises this process's peak memory."""
    head = nn.Linear(channels, vocabulary, bias=False)
    hidden = torch.randn(num_tokens, channels, requires_grad=True)
    targets = torch.randint(0, vocabulary, (num_tokens,))
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _peak_bytes()
    logprobs, _ = token_logprobs(hidden, targets, head, 0.7, chunk_tokens=LOGIT_BYTES["cpu"] // (vocabulary * 4))
    logprobs.sum().backward()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.long
def test_eight_thousand_tokens_of_a_large_vocabulary_stay_within_a_gibibyte() -> None:
    """8 responses of 1,024 tokens with a vocabulary of 151,936: 4.6 GiB of logits if held at once."""
    (peak,) = run_on_ranks(peak_bytes_of_scoring, 1, 8 * 1024, 151_936, 16)
    assert peak < GIBIBYTE


def test_recomputed_layers_of_a_frozen_model_keep_no_gradient_for_its_embedding(policy: Policy) -> None:
    """A trained layer at the end is all that needs one."""
    policy.model.requires_grad_(False)
    layers = list(policy.decoder.get_submodule("layers").children())
    layers[-1].requires_grad_(True)
    row_scorer_of(policy).recompute_layers()
    assert not policy.embed_tokens(torch.tensor([1, 2])).requires_grad
    scores = score_branches(policy, policy.build_prompt("Which?", []), [Branch(token_ids=(1, 2, 3))])
    scores.logprobs[0].sum().backward()
    assert all(weight.grad is not None for weight in layers[-1].parameters())
