"""Gathers over ranks and their gradients, with uneven and empty slices; and the tool that starts the ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrsp_engine.collectives import gather_results, gather_tokens, sum_gradients
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.process_groups import SequenceGroup, create_sequence_group
from mrsp_engine.testing import RankError, run_on_ranks

Findings = tuple[dict[str, Tensor] | None, dict[str, Tensor], str]
"""What one rank saw: the exchange (if it took part), the summed gradients, the refusal of a bad group size."""

LENGTHS = (3, 0, 4)


def exchange(group: SequenceGroup) -> dict[str, Tensor]:
    """Gather in both ways; each rank weighs the tokens differently, and the results alike."""
    start = sum(LENGTHS[: group.rank])
    whole = torch.arange(sum(LENGTHS) * 2, dtype=torch.float64).view(-1, 2)
    mine = whole[start : start + LENGTHS[group.rank]]
    tokens, results = mine.clone().requires_grad_(), mine.clone().requires_grad_()
    gathered = gather_tokens(tokens, LENGTHS, group)
    (gathered * whole * (group.rank + 1)).sum().backward()
    of_results = gather_results(results, LENGTHS, group)
    (of_results * whole).sum().backward()
    assert tokens.grad is not None
    assert results.grad is not None
    return {
        "tokens": gathered.detach(),
        "results": of_results.detach(),
        "d tokens": tokens.grad,
        "d results": results.grad,
    }


def sum_of_gradients() -> dict[str, Tensor]:
    """Sum over groups of two neighbours; one parameter lacks a gradient on the odd ranks, one is frozen."""
    group = create_sequence_group(2)
    model = nn.Linear(2, 2)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    if group.rank == 0:
        model.weight.grad = torch.full_like(model.weight, 10.0 * (dist.get_rank() + 1))
    model.bias.grad = torch.full_like(model.bias, float(dist.get_rank()))
    sum_gradients([*model.parameters(), frozen], group)
    assert frozen.grad is None
    assert model.weight.grad is not None
    return {"weight": model.weight.grad, "bias": model.bias.grad}


def refuse_group() -> str:
    with pytest.raises(EngineUsageError) as caught:
        create_sequence_group(3)
    return str(caught.value)


def everything() -> Findings:
    """All checks in one start of four ranks; the exchange runs on the first three."""
    three = dist.new_group([0, 1, 2])
    exchanged = exchange(SequenceGroup.of(three)) if dist.get_rank() < 3 else None
    return exchanged, sum_of_gradients(), refuse_group()


@pytest.fixture(scope="module")
def by_rank() -> list[Findings]:
    return run_on_ranks(everything, 4)


def test_both_gathers_join_the_slices(by_rank: list[Findings]) -> None:
    whole = torch.arange(sum(LENGTHS) * 2, dtype=torch.float64).view(-1, 2)
    for exchanged, _, _ in by_rank[:3]:
        assert exchanged is not None
        assert exchanged["tokens"].equal(whole)
        assert exchanged["results"].equal(whole)


def test_gradients_of_tokens_add_up_and_those_of_results_do_not(
    by_rank: list[Findings],
) -> None:
    slices = torch.arange(sum(LENGTHS) * 2, dtype=torch.float64).view(-1, 2).split(LENGTHS)
    for (exchanged, _, _), own in zip(by_rank[:3], slices, strict=True):
        assert exchanged is not None
        assert exchanged["d tokens"].equal(own * (1 + 2 + 3))
        assert exchanged["d results"].equal(own)


def test_parameter_gradients_are_summed_within_the_group(
    by_rank: list[Findings],
) -> None:
    weights = [summed["weight"][0, 0].item() for _, summed, _ in by_rank]
    biases = [summed["bias"][0].item() for _, summed, _ in by_rank]
    assert weights == [10.0, 10.0, 30.0, 30.0]
    assert biases == [1.0, 1.0, 5.0, 5.0]


def test_a_group_size_must_divide_the_ranks(
    by_rank: list[Findings],
) -> None:
    assert "sequence group size 3: expected a divisor of the number of ranks (4)" in by_rank[0][2]


def fail_on_second_rank() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the reason")
    dist.barrier()


def test_a_failing_rank_is_reported_and_the_others_stopped() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 failed.*the reason"):
        run_on_ranks(fail_on_second_rank, 2, timeout_seconds=60)
