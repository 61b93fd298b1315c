"""Gathers over ranks and their gradients, with uneven and empty slices; and the pool that starts the ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrsp_engine.attention.rates import measure_rates
from mrsp_engine.attention.split import MachineRates
from mrsp_engine.distributed.collectives import gather_results, sum_gradients, swap
from mrsp_engine.distributed.process_groups import SequenceGroup, create_sequence_group
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.testing.fixtures import RankError, RankPool, run_on_ranks

Findings = tuple[dict[str, Tensor] | None, dict[str, Tensor], str, MachineRates]
"""What one rank saw: the exchange (if it took part), the summed gradients, the refusal of a bad group size,
and what it measured."""

LENGTHS = (3, 0, 4)


def exchange(group: SequenceGroup) -> dict[str, Tensor]:
    """Exchange pieces of different sizes for every pair of ranks; gather results, which every rank weights equally."""
    pieces = [torch.full((group.rank + to, to + 1), float(group.rank), dtype=torch.float64) for to in range(group.size)]
    for piece in pieces:
        piece.requires_grad_()
    swapped = swap(pieces, [sender + group.rank for sender in range(group.size)], group)
    torch.stack([part.sum() * (group.rank + 1) * (sender + 1) for sender, part in enumerate(swapped)]).sum().backward()

    start = sum(LENGTHS[: group.rank])
    whole = torch.arange(sum(LENGTHS) * 2, dtype=torch.float64).view(-1, 2)
    results = whole[start : start + LENGTHS[group.rank]].clone().requires_grad_()
    gathered = gather_results(results, LENGTHS, group)
    (gathered * whole).sum().backward()
    assert results.grad is not None
    found = {"results": gathered.detach(), "d results": results.grad}
    for rank, (piece, part) in enumerate(zip(pieces, swapped, strict=True)):
        assert piece.grad is not None
        found |= {f"from {rank}": part.detach(), f"d to {rank}": piece.grad}
    return found


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
    rates = measure_rates(create_sequence_group(2), torch.device("cpu"), torch.float32)
    return exchanged, sum_of_gradients(), refuse_group(), rates


@pytest.fixture(scope="module")
def by_rank() -> list[Findings]:
    return run_on_ranks(everything, 4)


def test_pieces_arrive_and_their_gradients_return(by_rank: list[Findings]) -> None:
    for rank, found in enumerate(by_rank[:3]):
        assert found[0] is not None
        for other in range(3):
            assert found[0][f"from {other}"].equal(torch.full((other + rank, rank + 1), float(other)).double())
            gradient = torch.full((rank + other, other + 1), (other + 1.0) * (rank + 1)).double()
            assert found[0][f"d to {other}"].equal(gradient)


def test_results_are_joined_and_each_rank_takes_its_gradient(by_rank: list[Findings]) -> None:
    whole = torch.arange(sum(LENGTHS) * 2, dtype=torch.float64).view(-1, 2)
    for found, own in zip(by_rank[:3], whole.split(LENGTHS), strict=True):
        assert found[0] is not None
        assert found[0]["results"].equal(whole)
        assert found[0]["d results"].equal(own)


def test_ranks_agree_on_measured_rates(by_rank: list[Findings]) -> None:
    rates = [found[3] for found in by_rank]
    assert rates[0] == rates[1]
    assert rates[2] == rates[3]
    for measured in rates:
        assert measured.flops_per_second > 1e6
        assert measured.bytes_per_second > 1e6
        assert 0 < measured.message_seconds < 10


def test_parameter_gradients_are_summed_within_the_group(
    by_rank: list[Findings],
) -> None:
    weights = [summed["weight"][0, 0].item() for _, summed, _, _ in by_rank]
    biases = [summed["bias"][0].item() for _, summed, _, _ in by_rank]
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


@pytest.mark.slow
def test_a_failing_rank_is_reported_and_the_others_stopped() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 failed.*the reason"):
        run_on_ranks(fail_on_second_rank, 2, timeout_seconds=60)


def wait_on_second_rank() -> None:
    if dist.get_rank() == 1:
        dist.barrier()


@pytest.mark.slow
def test_a_rank_that_hangs_says_where_and_the_next_call_starts_anew() -> None:
    with RankPool(2, timeout_seconds=2) as ranks:
        with pytest.raises(RankError, match=r"(?s)ranks \[1\] did not finish in 2 s.*in wait_on_second_rank"):
            ranks.call(wait_on_second_rank)
        assert ranks.call(dist.get_world_size) == [2, 2]
