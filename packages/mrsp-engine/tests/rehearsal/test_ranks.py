"""Ranks of a rehearsal: real processes, fake tensors.

They are started from a process that only starts them, since in this one other tests may have run backward passes.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.rehearsal.processes import RankRecord
from mrsp_engine.rehearsal.recorder import StepRecorder

WIDTH, INNER, VOCABULARY, ROWS, LAYERS = 1024, 4096, 50000, 100, 3
LAYER_WEIGHTS = 2 * WIDTH * INNER
HEAD_WEIGHTS = WIDTH * VOCABULARY


Rehearse = Callable[[Any, int], list[RankRecord[Any]]]


STARTER = """
import pickle, runpy, sys
from mrsp_engine.rehearsal.processes import rehearse_ranks

source, program, num_ranks, output = sys.argv[1:]
try:
    outcome = rehearse_ranks(runpy.run_path(source)[program], int(num_ranks))
except Exception as error:
    outcome = error
with open(output, "wb") as file:
    pickle.dump(outcome, file)
"""


@pytest.fixture
def rehearse(tmp_path: Path) -> Rehearse:
    def start(program: Any, num_ranks: int) -> list[RankRecord[Any]]:
        output = tmp_path / "outcome"
        arguments = [__file__, program.__name__, str(num_ranks), str(output)]
        subprocess.run([sys.executable, "-c", STARTER, *arguments], check=True, timeout=300)
        outcome = pickle.loads(output.read_bytes())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return start


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(WIDTH, INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False))
                for _ in range(LAYERS)
            )
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(rows))


def build(recorder: StepRecorder, fakes: FakeTensorMode) -> Scorer:
    with recorder.stage("load", "weights"), fakes:
        scorer = Scorer()
    recorder.know(scorer, scorer.decoder, scorer.head)
    return scorer


def step(recorder: StepRecorder, fakes: FakeTensorMode, scorer: Scorer) -> float:
    optimizer = torch.optim.AdamW(scorer.parameters(), fused=True)
    with recorder.stage("update"):
        for _ in range(2):
            with fakes:
                rows = torch.zeros(ROWS, WIDTH)
            scorer(rows).sum().backward()
            norm = float(nn.utils.clip_grad_norm_(scorer.parameters(), 1.0))
            optimizer.step()
            optimizer.zero_grad()
    return norm


def alone(recorder: StepRecorder, fakes: FakeTensorMode) -> float:
    return step(recorder, fakes, build(recorder, fakes))


def sharded(recorder: StepRecorder, fakes: FakeTensorMode) -> float:
    scorer = build(recorder, fakes)
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with recorder.stage("load", "weights"):
        for layer in scorer.decoder:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(scorer, mesh=mesh, mp_policy=precision)
        recorder.assign(scorer.parameters(), "weights")
    return step(recorder, fakes, scorer)


@pytest.mark.slow
def test_one_rank_holds_what_arithmetic_says(rehearse: Rehearse) -> None:
    (record,) = rehearse(alone, 1)
    weights = 4 * (LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS)
    update = record.peaks["update"]
    assert record.peaks["load"].num_bytes == weights
    assert update.parts["weights"] == weights
    assert update.parts["gradients"] == pytest.approx(weights, rel=2e-3)  # and the norm's small numbers
    assert update.parts["optimizer"] == pytest.approx(2 * weights, abs=100)
    # Beside these there are only a few activations.
    assert update.num_bytes == pytest.approx(4 * weights, rel=3e-3)
    products = 2 * ROWS * (LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS)
    inputs_without_gradient = 2 * ROWS * WIDTH * INNER
    assert record.operations["update"] == 2 * (3 * products - inputs_without_gradient)
    assert not record.exchanges


@pytest.mark.slow
def test_sharded_ranks_hold_their_part_and_gather_layers(rehearse: Rehearse) -> None:
    records = rehearse(sharded, 2)
    weights = 4 * (LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS)
    for record in records:
        parts = record.peaks["update"].parts
        assert parts["weights"] == weights / 2
        assert parts["optimizer"] == pytest.approx(weights, abs=100)
        assert 0 < parts["gathered weights"] <= 2 * (HEAD_WEIGHTS + 2 * LAYER_WEIGHTS)
        kinds = [exchange.kind for exchange in record.exchanges if exchange.kind != "plain objects"]
        # Every layer is gathered forward and backward, the root once a step; each is scattered once.
        assert kinds.count("all_gather") == 2 * (2 * LAYERS + 1)
        assert kinds.count("reduce_scatter") == 2 * (LAYERS + 1)


def wrong_order(recorder: StepRecorder, fakes: FakeTensorMode) -> None:
    with fakes:
        numbers = torch.zeros(8)
    for kind in ("reduce", "gather") if dist.get_rank() else ("gather", "reduce"):
        if kind == "reduce":
            dist.all_reduce(numbers)
        else:
            dist.all_gather([torch.empty_like(numbers) for _ in range(2)], numbers)


def rooted(recorder: StepRecorder, fakes: FakeTensorMode) -> list[str]:
    """One rank gathers what the ranks have to say, and answers each."""
    rank, said = dist.get_rank(), "x" * (1 + dist.get_rank())
    heard: list[Any] = [None, None]
    dist.gather_object(said, heard if rank == 0 else None)
    answer: list[Any] = [None]
    dist.scatter_object_list(answer, [[*heard], [heard[1] * 999]] if rank == 0 else None)
    return answer[0]


@pytest.mark.slow
def test_what_one_rank_gathers_and_scatters_counts_alike_on_all(rehearse: Rehearse) -> None:
    records = rehearse(rooted, 2)
    assert [record.result for record in records] == [["x", "xx"], ["xx" * 999]]
    first, second = ([(exchange.kind, exchange.num_bytes) for exchange in record.exchanges] for record in records)
    assert first == second
    assert max(num_bytes for _, num_bytes in first) > 2 * 999


def missing_object(recorder: StepRecorder, fakes: FakeTensorMode) -> None:
    for turn in range(2 - dist.get_rank()):
        found: list[int | None] = [None, None]
        dist.all_gather_object(found, turn + dist.get_rank())
        assert found == [turn, turn + 1]


def failing(recorder: StepRecorder, fakes: FakeTensorMode) -> None:
    if dist.get_rank():
        raise EngineUsageError("frames=0: expected 1 or more; set data.num_frames")
    dist.all_gather_object([None, None], 0)


def dying(recorder: StepRecorder, fakes: FakeTensorMode) -> None:
    if dist.get_rank():
        os._exit(9)
    dist.all_gather_object([None, None], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        (wrong_order, EngineUsageError, "the step would hang: rank 0 comes to its exchange 1, all_gather of"),
        (
            missing_object,
            EngineUsageError,
            "the step would hang: rank 0 waits forever at its exchange 3, plain objects",
        ),
        (failing, EngineUsageError, "frames=0: expected 1 or more; set data.num_frames"),
        (dying, EngineError, "rank 1 of the rehearsal was killed"),
    ],
)
def test_ranks_that_would_never_end_are_refused_at_once(
    rehearse: Rehearse, program: object, kind: type[Exception], words: str
) -> None:
    started = time.monotonic()
    with pytest.raises(kind) as refusal:
        rehearse(program, 2)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - started < 120, "they were waited for"
