"""AdamW or Muon over a model's trainable parameters, learning rates over time, and the state as plain tensors.

Muon (Jordan et al. 2024, torch.optim.Muon) updates the matrices inside the network along an orthogonalised momentum;
embeddings, head, norms and biases use AdamW. Small models learn retrieval several times faster with it.

Weights with lower precision than float32 get a float32 copy that the optimizer updates: at small learning rates an
update of a bfloat16 weight is otherwise rounded away. Sharded weights (DTensors) are kept in float32 already, and every
rank updates its parts. Independent of losses and of where the state is stored.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from longrl_trainer.config.sections import OptimizerName
from longrl_trainer.errors import TrainerError
from mrsp_engine.distributed.sharded_weights import spread_like, whole_tensor

FINE_DTYPES = (torch.float32, torch.float64)
MASTER = "master"


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
        computed_dtype: torch.dtype | None = None,
    ) -> None:
        """Create the optimizer.

        Args:
            model: Its trainable parameters are optimized.
            weight_decay: Of matrices.
            max_gradient_norm: Gradients with a larger norm are scaled down to this norm.
            name: The method.
            muon_learning_rate_ratio: Muon's learning rate as a multiple of AdamW's.
            computed_dtype: The dtype that sharded weights are computed and saved in, if it isn't that of the weights.
        """
        self.max_gradient_norm = max_gradient_norm
        self._parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not self._parameters:
            raise TrainerError("the model has no trainable parameter")
        self._masters = {name: _master_of(weight) for name, weight in self._parameters.items()}
        # Those whose values a saved model doesn't have.
        self._fine_names = [
            name
            for name, weight in self._parameters.items()
            if self._masters[name] is not weight
            or (isinstance(weight, DTensor) and computed_dtype not in (None, weight.dtype))
        ]
        matrices = {name for name, weight in self._parameters.items() if weight.dim() > 1}
        inner = _matrices_of_linear_layers(model) & matrices if name == "muon" else set[str]()
        # In the model's order, so that the state's indices mean the same in every process.
        ordered = [
            [name for name in self._parameters if name in names]
            for names in (matrices - inner, self._parameters.keys() - matrices, inner)
        ]
        decayed, plain, orthogonalised = ordered
        self._optimizers: list[tuple[torch.optim.Optimizer, list[str], float]] = []
        if decayed or plain:
            groups = [
                {"params": [self._masters[name] for name in names], "weight_decay": decay}
                for names, decay in ((decayed, weight_decay), (plain, 0.0))
                if names
            ]
            self._optimizers.append((torch.optim.AdamW(groups, fused=True), decayed + plain, 1.0))
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

    @property
    def most_state_bytes(self) -> int:
        """More than any file with its state has: three tensors for each parameter, with their names."""
        return 2**24 + sum(3 * 8 * weight.numel() + 2**12 for weight in self._parameters.values())

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
        """Everything a later process needs to continue: moments, step counts, and any float32 copies.

        If weights are sharded, all ranks call this together, and the first one gets the tensors.
        """
        is_first = not any(rank for weight in self._parameters.values() for rank in _place_of(weight))
        tensors: dict[str, Tensor] = {}
        for optimizer, names, _ in self._optimizers:
            for index, values in optimizer.state_dict()["state"].items():
                for moment, value in values.items():
                    tensors[f"{moment}/{names[index]}"] = _whole_copy(value, is_kept=is_first)
        for name in self._fine_names:
            tensors[f"{MASTER}/{name}"] = _whole_copy(self._masters[name], is_kept=is_first)
        return tensors if is_first else {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_tensors` returned in an earlier process for the same model, sharded or not."""
        remaining = dict(tensors)
        masters = {name: remaining.pop(f"{MASTER}/{name}", None) for name in self._fine_names}
        states: list[dict[int, dict[str, Tensor]]] = []
        for _, names, _ in self._optimizers:
            indices = {name: index for index, name in enumerate(names)}
            state: dict[int, dict[str, Tensor]] = {}
            for key in list(remaining):
                moment, _, name = key.partition("/")
                if name in indices:
                    value, weight = remaining.pop(key), self._masters[name]
                    is_spread = value.shape == weight.shape and value.dim() > 0
                    state.setdefault(indices[name], {})[moment] = spread_like(value, weight) if is_spread else value
            states.append(state)
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        fits = all(
            tensor.shape in (torch.Size(()), shapes.get(key.partition("/")[2])) for key, tensor in tensors.items()
        )
        if remaining or not fits or any(master is None for master in masters.values()):
            raise TrainerError("the saved optimizer state belongs to another model or dtype")
        for (optimizer, _, _), state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        with torch.no_grad():
            for name, master in masters.items():
                if master is not None:
                    self._masters[name].copy_(spread_like(master, self._masters[name]))
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        """Round the float32 copies into the model's weights."""
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                self._parameters[name].copy_(master)


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


def _place_of(weight: Tensor) -> Sequence[int]:
    """This rank's place among the ranks of a sharded weight."""
    return (weight.device_mesh.get_coordinate() or ()) if isinstance(weight, DTensor) else ()


def _whole_copy(tensor: Tensor, *, is_kept: bool) -> Tensor:
    """A whole tensor in host memory, or nothing where it isn't kept."""
    whole = whole_tensor(tensor.detach())
    return whole.cpu().contiguous() if is_kept else torch.empty(0)


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
