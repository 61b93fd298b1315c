"""A state saved by some ranks continues on others, sharded otherwise; what can't be written is one line on all."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from longrl_trainer.errors import TrainerError
from longrl_trainer.training.checkpoints import (
    Checkpoint,
    describe_state,
    latest_checkpoint,
    list_checkpoints,
    restore,
)
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE, Ranks
from longrl_trainer.training.saving import CheckpointSaver, open_messages
from longrl_trainer.training.shards import PlannedFiles, plan_writing
from mrsp_engine.distributed.process_groups import create_sequence_group
from mrsp_engine.testing.fixtures import RankPool

SAVED, LAST = 2, 4


class Model(nn.Module):
    """Matrices that no number of ranks divides, a weight smaller than the ranks, tied weights, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.inner = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.tower = nn.Linear(3, 2).requires_grad_(False)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight


def make(dtype: torch.dtype, *, is_sharded: bool, name: str = "adamw") -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = Model().to(dtype)
    if is_sharded:
        fully_shard(model)
    return model, Optimizer(model, weight_decay=0.1, max_gradient_norm=1e9, name=name)


def make_step(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """The same gradients on all ranks; one weight gets none in the first steps."""
    for number, weight in enumerate(model.parameters()):
        if not weight.requires_grad or (number == 3 and step < SAVED):
            continue
        generator = torch.Generator().manual_seed(100 * step + number)
        gradient = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
        is_shard = isinstance(weight, DTensor)
        weight.grad = distribute_tensor(gradient, weight.device_mesh, weight.placements) if is_shard else gradient
    optimizer.step(1e-2)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def ranks_of() -> Ranks:
    return Ranks(group=create_sequence_group(dist.get_world_size())) if dist.is_initialized() else ALONE


def save(folder: str, dtype: torch.dtype, is_sharded: bool) -> PlannedFiles:
    """Save after some steps, and go on while the checkpoint is written; returns what was planned for it."""
    model, optimizer = make(dtype, is_sharded=is_sharded)
    saver = CheckpointSaver(Path(folder), num_kept=1, ranks=ranks_of())
    for step in range(LAST):
        make_step(model, optimizer, step)
        if step + 1 == SAVED:
            state = describe_state(model, step=SAVED, seed=3, dtype=str(dtype).removeprefix("torch."), score=None)
            planned = plan_writing(optimizer.state_tensors(), group=open_messages(ranks_of()))
            saver.start(optimizer.state_tensors(), state)
    saver.wait()
    saver.close()
    return planned


def written_by(run: Path, rank: int) -> tuple[int, int]:
    """Files of a rank in the only checkpoint, and bytes of the numbers in them."""
    (checkpoint,) = list_checkpoints(run)
    files = list(checkpoint.folder.glob(f"shard-{rank + 1:05d}-*"))
    return len(files), sum(tensor.nbytes for file in files for tensor in load_file(file).values())


def go_on(folder: str, dtype: torch.dtype, is_sharded: bool) -> dict[str, Tensor]:
    """The weights of a run that continues from the checkpoint."""
    model, optimizer = make(dtype, is_sharded=is_sharded)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.fill_(9.0)
    checkpoint = latest_checkpoint(Path(folder)) if not dist.is_initialized() or dist.get_rank() == 0 else None
    checkpoint = checkpoint or Checkpoint(step=SAVED, folder=Path(folder) / "checkpoints" / f"step-{SAVED:06d}")
    restore(checkpoint, optimizer, seed=3, ranks=ranks_of())
    for step in range(SAVED, LAST):
        make_step(model, optimizer, step)
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def undisturbed(dtype: torch.dtype) -> dict[str, Tensor]:
    model, optimizer = make(dtype, is_sharded=False)
    for step in range(LAST):
        make_step(model, optimizer, step)
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def refuse_on_ranks(folder: str) -> list[str]:
    """From the second checkpoint on, one rank can't write."""
    found: list[str] = []
    model, optimizer = make(torch.float64, is_sharded=True)
    saver = CheckpointSaver(Path(folder), num_kept=1, ranks=ranks_of())
    for step in (1, 2, 3):
        if step == 2 and dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        state = describe_state(model, step=step, seed=0, dtype="float64", score=None)
        saver.start(optimizer.state_tensors(), state)
        try:
            saver.wait()
        except TrainerError as error:
            found.append(str(error))
    saver.close()
    return found


@pytest.mark.slow
def test_a_state_continues_on_any_number_of_ranks_sharded_or_not(tmp_path):
    with RankPool(2) as two, RankPool(4) as four:
        for dtype in (torch.float64, torch.bfloat16):
            expected = undisturbed(dtype)
            savers: dict[str, Callable[[str], Any]] = {
                "alone": lambda folder, dtype=dtype: save(folder, dtype, False),
                "two sharded": lambda folder, dtype=dtype: two.call(save, folder, dtype, True),
                "two whole": lambda folder, dtype=dtype: two.call(save, folder, dtype, False),
                "four sharded": lambda folder, dtype=dtype: four.call(save, folder, dtype, True),
            }
            for name, begin in savers.items():
                run = tmp_path / f"{dtype} {name}"
                run.mkdir()
                planned = begin(str(run))
                for rank, plan in enumerate(planned if isinstance(planned, list) else [planned]):
                    assert (plan.num_files, plan.num_bytes) == written_by(run, rank), name
                    assert plan.copied_bytes >= plan.num_bytes
                found = {"alone": [go_on(str(run), dtype, False)]}
                for pool, num_ranks in ((two, 2), (four, 4)):
                    for is_sharded in (True, False):
                        found[f"{num_ranks} {is_sharded}"] = pool.call(go_on, str(run), dtype, is_sharded)
                for continued, ranks in found.items():
                    for weights in ranks:
                        assert all(tensor.equal(weights[key]) for key, tensor in expected.items()), (name, continued)
                (checkpoint,) = list_checkpoints(run)
                assert len(list(checkpoint.folder.glob("shard-*"))) == {"a": 1, "t": 2, "f": 4}[name[0]]
                weights = checkpoint.read_weights()
                assert weights["tower.weight"].is_meta
                assert weights["head.weight"] is weights["embedding.weight"]
                assert weights["head.weight"].dtype == dtype
        (tmp_path / "full").mkdir()
        first, second = two.call(refuse_on_ranks, str(tmp_path / "full"))
    assert first == second
    assert len(first) == 2
    assert all("cannot write a checkpoint" in line and "File too large" in line for line in first)
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.slow
def test_a_lost_shard_is_noticed(tmp_path):
    with RankPool(2) as two:
        two.call(save, str(tmp_path), torch.float64, True)
    folder = tmp_path / "checkpoints" / f"step-{SAVED:06d}"
    second = next(folder.glob("shard-00002-*"))
    second.rename(tmp_path / second.name)
    with pytest.raises(TrainerError, match=r"is damaged \(shard-00002-.* has nothing, expected"):
        latest_checkpoint(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    del state["files"][second.name]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(TrainerError, match=r"another model|isn't whole"):
        go_on(str(tmp_path), torch.float64, False)


def test_the_newest_are_kept_and_the_best(tmp_path):
    model, optimizer = make(torch.float32, is_sharded=False)
    for num_kept, expected in ((1, {2: [2], 3: [2, 3], 4: [2, 4], 5: [5]}), (2, {5: [4, 5], 4: [2, 3, 4]})):
        run = tmp_path / str(num_kept)
        run.mkdir()
        saver = CheckpointSaver(run, num_kept=num_kept, ranks=ALONE)
        for step, score in enumerate((0.1, 0.7, 0.3, None, 0.9), start=1):
            saver.start(
                optimizer.state_tensors(), describe_state(model, step=step, seed=0, dtype="float32", score=score)
            )
            saver.wait()
            steps = sorted(checkpoint.step for checkpoint in list_checkpoints(run))
            assert steps == expected.get(step, steps)
        saver.close()
