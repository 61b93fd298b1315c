"""AdamW or Muon over a model's trainable parameters, learning rates over time, and the state as plain tensors.

Muon (Jordan et al. 2024, torch.optim.Muon) updates the matrices inside the network along an orthogonalised momentum;
embeddings, head, norms and biases use AdamW. Small models learn retrieval several times faster with it.

Weights with lower precision than float32 get a float32 copy that the optimizer updates: at small learning rates an
update of a bfloat16 weight is otherwise rounded away. Independent of losses and of where the state is stored.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longrl_trainer.config.sections import OptimizerName
from longrl_trainer.errors import TrainerError

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
    ) -> None:
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

    def step(self, learning_rate: float) -> float:
        """Update the weights from their gradients; returns the gradient's norm before it was clipped."""
        for name, master in self._masters.items():
            weight = self._parameters[name]
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
        norm = float(nn.utils.clip_grad_norm_(self._masters.values(), self.max_gradient_norm))
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
        """Everything a later process needs to continue: moments, step counts, and any float32 copies."""
        tensors: dict[str, Tensor] = {}
        for optimizer, names, _ in self._optimizers:
            for index, values in optimizer.state_dict()["state"].items():
                for moment, value in values.items():
                    tensors[f"{moment}/{names[index]}"] = value.detach().cpu().contiguous()
        for name in self._coarse_names():
            tensors[f"{MASTER}/{name}"] = self._masters[name].detach().cpu().contiguous()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_tensors` returned in an earlier process for the same model."""
        remaining = dict(tensors)
        masters = {name: remaining.pop(f"{MASTER}/{name}", None) for name in self._coarse_names()}
        states: list[dict[int, dict[str, Tensor]]] = []
        for _, names, _ in self._optimizers:
            indices = {name: index for index, name in enumerate(names)}
            state: dict[int, dict[str, Tensor]] = {}
            for key in list(remaining):
                moment, _, name = key.partition("/")
                if name in indices:
                    state.setdefault(indices[name], {})[moment] = remaining.pop(key)
            states.append(state)
        if remaining or any(master is None for master in masters.values()):
            raise TrainerError("the saved optimizer state belongs to another model or dtype")
        for (optimizer, _, _), state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        with torch.no_grad():
            for name, master in masters.items():
                if master is not None:
                    self._masters[name].copy_(master)
        self._write_back()

    def _coarse_names(self) -> list[str]:
        return [name for name, master in self._masters.items() if master is not self._parameters[name]]

    @torch.no_grad()
    def _write_back(self) -> None:
        """Round the float32 copies into the model's weights."""
        for name in self._coarse_names():
            self._parameters[name].copy_(self._masters[name])


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
