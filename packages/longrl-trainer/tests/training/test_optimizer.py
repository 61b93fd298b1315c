"""The optimizer: AdamW by hand, clipping, float32 copies of coarse weights, and state that survives a restart."""

import copy
import math

import pytest
import torch
from torch import nn

from longrl_trainer.errors import TrainerError
from longrl_trainer.training.optimizer import Optimizer, cosine_learning_rate, warmup_learning_rate


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    model[0].bias.requires_grad_(False)
    return model


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)


def test_the_first_step_by_hand():
    model = nn.Linear(1, 1).double()
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = Optimizer(model, weight_decay=0.1, max_gradient_norm=100.0)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]).double(), torch.tensor([-4.0]).double()
    assert optimizer.step(0.01) == pytest.approx(5.0)
    # AdamW's first step moves by the learning rate against the gradient's sign; only the matrix decays, by lr * 0.1
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.001) - 0.01, abs=1e-8)
    assert model.bias.item() == pytest.approx(2.0 + 0.01, abs=1e-8)
    assert model.weight.grad is None


def test_a_gradient_beyond_the_norm_is_scaled_down_but_reported_in_full():
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = Optimizer(model, weight_decay=0.0, max_gradient_norm=0.5)
    model.weight.grad = torch.tensor([[40.0]]).double()
    assert optimizer.step(0.0) == pytest.approx(40.0)
    moment = optimizer.state_tensors()["exp_avg/weight"].item()
    assert moment == pytest.approx(0.1 * 0.5, rel=1e-5)  # beta1 = 0.9


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model, weight_decay=0.0, max_gradient_norm=1.0)
    set_gradients(model, 0)
    model[2].weight.grad[0, 0] = math.nan
    with pytest.raises(TrainerError, match="norm is nan"):
        optimizer.step(0.1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_restarted_optimizer_continues_bit_by_bit(dtype, name):
    model = make_model(dtype)
    optimizer = Optimizer(model, weight_decay=0.1, max_gradient_norm=1.0, name=name)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step(1e-3)
    again = copy.deepcopy(model)
    other = Optimizer(again, weight_decay=0.1, max_gradient_norm=1.0, name=name)
    saved = {name: value.clone() for name, value in optimizer.state_tensors().items()}
    other.restore(saved, lambda targets: [target.copy_(saved[name]) for name, target in targets.items()])
    for step in range(3, 6):
        for either, its in ((model, optimizer), (again, other)):
            set_gradients(either, step)
            its.step(1e-3)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), again.parameters(), strict=True))
    assert any(
        not torch.equal(value, make_model(dtype).state_dict()[name]) for name, value in model.state_dict().items()
    )


def test_muon_takes_the_matrices_inside_and_leaves_embeddings_and_biases_to_adamw():
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "inner": nn.Linear(4, 4), "lm_head": nn.Linear(4, 6)})
    model["lm_head"].weight = model["embedding"].weight
    optimizer = Optimizer(model, weight_decay=0.0, max_gradient_norm=1e9, name="muon", muon_learning_rate_ratio=2.0)
    before = model["inner"].weight.detach().clone()
    set_gradients(model, 0)
    optimizer.step(0.01)
    state = optimizer.state_tensors()
    assert {key for key in state if "momentum_buffer" in key} == {"momentum_buffer/inner.weight"}
    assert {key.partition("/")[2] for key in state if key.startswith("weight/")} == {
        name for name, _ in model.named_parameters()
    }
    assert {key.partition("/")[2] for key in state if "exp_avg/" in key} == {
        "embedding.weight",
        "inner.bias",
        "lm_head.bias",
    }
    # An orthogonal matrix has singular values of one; torch scales it to AdamW's usual size, 0.2 * sqrt(4) of it.
    moved = torch.linalg.svdvals((before - model["inner"].weight) / (0.01 * 2.0 * 0.2 * math.sqrt(4)))
    assert moved.detach().tolist() == pytest.approx([1.0] * 4, abs=0.35)


def test_small_updates_of_coarse_weights_are_not_rounded_away():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    optimizer = Optimizer(model, weight_decay=0.0, max_gradient_norm=1.0)
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step(1e-4)  # far below the spacing of bfloat16 numbers near 1
    assert model.weight.item() == pytest.approx(0.99, abs=0.004)


def test_the_state_of_another_model_is_refused():
    optimizer = Optimizer(make_model(), weight_decay=0.0, max_gradient_norm=1.0)
    complete = optimizer.state_tensors()
    name, weight = next(iter(complete.items()))
    for saved in (
        complete | {"exp_avg/elsewhere": torch.zeros(1)},
        complete | {name: torch.zeros(3, 5)},
        complete | {name.replace("weight/", "exp_avg/", 1): torch.zeros_like(weight)},  # without the other moments
        {other: tensor for other, tensor in complete.items() if other != name},
    ):
        with pytest.raises(TrainerError, match="another model"):
            optimizer.restore(saved, lambda targets: None)


def test_warmup_rises_in_a_line_and_stays():
    rates = [warmup_learning_rate(step, peak=0.4, warmup_steps=4) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert warmup_learning_rate(0, peak=0.4, warmup_steps=0) == 0.4


def test_the_cosine_starts_at_the_peak_and_ends_at_its_floor():
    rates = [
        cosine_learning_rate(step, num_steps=12, peak=1.0, warmup_steps=2, min_learning_rate_fraction=0.2)
        for step in (0, 1, 2, 7, 12)
    ]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2])
