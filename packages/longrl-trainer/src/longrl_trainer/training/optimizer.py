"""AdamW or Muon over a model's trainable parameters, learning rates over time, and the state as plain tensors.

Muon (Jordan et al. 2024, torch.optim.Muon) updates the matrices inside the network along an orthogonalised momentum;
embeddings, head, norms and biases use AdamW. Small models learn retrieval several times faster with it.

Weights with lower precision than float32 get a float32 copy that the optimizer updates: at small learning rates an
update of a bfloat16 weight is otherwise rounded away. Sharded weights (DTensors) are kept in float32 already, and every
rank updates its parts. Independent of losses and of where the state is stored.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from longrl_files.messages import visible
from longrl_trainer.config.sections import OptimizerName
from longrl_trainer.errors import TrainerError
from mrsp_engine.distributed.sharded_weights import whole_tensor

FINE_DTYPES = (torch.float32, torch.float64)
WEIGHT, STEP = "weight", "step"
MOMENTS: Mapping[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {STEP, "exp_avg", "exp_avg_sq"},
    torch.optim.Muon: {"momentum_buffer"},
}
"""What the optimizers keep for each parameter, after its first step."""


class TrainingOptimizer(Protocol):
    """What a loop needs of an optimizer, whoever keeps its state."""

    def step(self, learning_rate: float) -> float:
        """Update the weights from their gradients; returns the gradient's norm before it was clipped."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a later process needs to continue: weights in at least float32, moments, step counts.

        They are named after kind and parameter, whole or sharded.
        """
        ...

    def restore(self, saved: Mapping[str, Tensor], read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Continue from what `state_tensors` returned in an earlier process for the same model.

        Args:
            saved: All saved tensors; their values aren't looked at.
            read: Fills the tensors that it is given, which are sharded as in this process, with the saved values.

        Raises:
            TrainerError: They belong to another model or optimizer.
        """
        ...


class Optimizer:
    """AdamW, or Muon combined with AdamW, with gradient clipping; one `step` per update also clears the gradients."""

    def __init__(
        self,
        model: nn.Module,
        *,
        weight_decay: float,
        max_gradient_norm: float,
        name: OptimizerName = "adamw",
        muon_learning_rate_ratio: float = 5.0,
    ) -> None:
        """Create the optimizer.

        Args:
            model: Its trainable parameters are optimized.
            weight_decay: Of matrices.
            max_gradient_norm: Gradients with a larger norm are scaled down to this norm.
            name: The method.
            muon_learning_rate_ratio: Muon's learning rate as a multiple of AdamW's.
        """
        self.max_gradient_norm = max_gradient_norm
        self._parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not self._parameters:
            raise TrainerError("the model has no trainable parameter")
        self._masters = {name: _master_of(weight) for name, weight in self._parameters.items()}
        matrices = {name for name, weight in self._parameters.items() if weight.dim() > 1}
        inner = _matrices_of_linear_layers(model) & matrices if name == "muon" else set[str]()
        # In the model's order, so that the state's indices mean the same in every process.
        ordered = [
            [name for name in self._parameters if name in names]
            for names in (matrices - inner, self._parameters.keys() - matrices, inner)
        ]
        decayed, plain, orthogonalised = ordered
        self._optimizers: list[tuple[torch.optim.Optimizer, list[str], float]] = []
        # Whole and sharded weights in one group can't be updated by one call.
        groups = [
            ([name for name in names if isinstance(self._masters[name], DTensor) == is_sharded], decay)
            for names, decay in ((decayed, weight_decay), (plain, 0.0))
            for is_sharded in (False, True)
        ]
        groups = [(names, decay) for names, decay in groups if names]
        if groups:
            adamw = torch.optim.AdamW(
                [{"params": [self._masters[name] for name in names], "weight_decay": decay} for names, decay in groups],
                fused=True,
            )
            self._optimizers.append((adamw, [name for names, _ in groups for name in names], 1.0))
        if orthogonalised:
            muon = torch.optim.Muon(
                [self._masters[name] for name in orthogonalised],
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._optimizers.append((muon, orthogonalised, muon_learning_rate_ratio))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(weight.numel() for weight in self._parameters.values())

    def step(self, learning_rate: float) -> float:
        """Update the weights from their gradients; returns the gradient's norm before it was clipped."""
        for name, master in self._masters.items():
            weight = self._parameters[name]
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
        norm = clip_gradients(self._masters.values(), self.max_gradient_norm)
        if not math.isfinite(norm):
            raise TrainerError(f"the gradient's norm is {norm}; lower `learning_rate` or check the data of this step")
        for optimizer, _, ratio in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * ratio
            optimizer.step()
        self._write_back()
        for name, master in self._masters.items():
            master.grad = self._parameters[name].grad = None
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """See `TrainingOptimizer`; they are sharded as the weights are, and change with the next step."""
        tensors = {f"{WEIGHT}/{name}": master.detach() for name, master in self._masters.items()}
        for optimizer, names, _ in self._optimizers:
            for index, values in optimizer.state_dict()["state"].items():
                for moment, value in values.items():
                    tensors[f"{moment}/{names[index]}"] = value.detach()
        return tensors

    def restore(self, saved: Mapping[str, Tensor], read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """See `TrainingOptimizer`."""
        moments = {name: MOMENTS[type(optimizer)] for optimizer, names, _ in self._optimizers for name in names}
        kinds = match_saved(saved, {name: (self._masters[name].shape, of_one) for name, of_one in moments.items()})
        targets: dict[str, Tensor] = {}
        for name, found in kinds.items():
            master = self._masters[name]
            targets[f"{WEIGHT}/{name}"] = master.detach()
            for kind in found - {WEIGHT}:
                targets[f"{kind}/{name}"] = torch.zeros(()) if kind == STEP else torch.zeros_like(master)
        read(targets)
        for optimizer, names, _ in self._optimizers:
            state = {
                index: {kind: targets[f"{kind}/{name}"] for kind in kinds[name] - {WEIGHT}}
                for index, name in enumerate(names)
                if len(kinds[name]) > 1
            }
            # Settings such as the learning rate are those of this process: the saved ones would win.
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        """Round the float32 copies into the model's weights."""
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                self._parameters[name].copy_(master)


def match_saved(
    saved: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.Size, set[str]]]
) -> dict[str, set[str]]:
    """The kinds of saved tensors by parameter: its weight, and if it was ever updated all moments.

    Args:
        saved: All saved tensors by kind and parameter; their values aren't looked at.
        expected: The shape of every parameter, and the names of its moments.

    Raises:
        TrainerError: They belong to another model or optimizer.
    """
    kinds: dict[str, set[str]] = {name: set() for name in expected}
    for key, tensor in saved.items():
        kind, _, name = key.partition("/")
        if name not in expected or tensor.shape != (torch.Size(()) if kind == STEP else expected[name][0]):
            raise TrainerError(f"the saved optimizer state belongs to another model: {visible(key, 100)}")
        kinds[name].add(kind)
    for name, (_, moments) in expected.items():
        if kinds[name] not in ({WEIGHT}, {WEIGHT, *moments}):
            raise TrainerError(f"the saved optimizer state belongs to another model or optimizer: {name}")
    return kinds


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a largest norm of all together; returns the norm before.

    Parts of sharded gradients are on all ranks; the others are the same on every rank.
    """
    spread: list[Tensor] = []
    whole: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (spread if isinstance(parameter.grad, DTensor) else whole).append(parameter.grad)
    norms = [whole_tensor(nn.utils.get_total_norm(gradients)) for gradients in (spread, whole) if gradients]
    norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0] if norms else torch.zeros(())
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*spread, *whole):
        own = cast(Tensor, cast(Any, gradient).to_local()) if isinstance(gradient, DTensor) else gradient
        own.mul_(scale.to(own.device))
    return norm.item()


def warmup_learning_rate(step: int, *, peak: float, warmup_steps: int) -> float:
    """Rise linearly over the first steps (counted from 0), then stay at the peak."""
    return peak * min(1.0, (step + 1) / warmup_steps) if warmup_steps else peak


def cosine_learning_rate(
    step: int, *, num_steps: int, peak: float, warmup_steps: int, min_learning_rate_fraction: float
) -> float:
    """Rise linearly over the first steps (counted from 0), then fall along half a cosine to a share of the peak."""
    if step < warmup_steps:
        return warmup_learning_rate(step, peak=peak, warmup_steps=warmup_steps)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak * (min_learning_rate_fraction + (1.0 - min_learning_rate_fraction) * share)


def _master_of(weight: nn.Parameter) -> nn.Parameter:
    return weight if weight.dtype in FINE_DTYPES else nn.Parameter(weight.detach().float().clone())


def _matrices_of_linear_layers(model: nn.Module) -> set[str]:
    """Weights of linear layers, except those that are tied to an embedding or are the model's head."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings and not prefix.endswith("lm_head")
    }
