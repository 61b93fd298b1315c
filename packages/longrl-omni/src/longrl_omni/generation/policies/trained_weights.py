"""The trained weights of a policy, and copies of them: the start, and moving averages.

What is trained is either all of the network or adapters (LoRA, arXiv 2106.09685) by peft. The copies are of the trained
weights alone, so with adapters a second policy costs a second adapter. At the start adapters add exactly nothing, so
their first values are the network without them.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from longrl_omni.generation.config.recipes import GenerationLoraSection
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.seeds import derive_seed

Weights = Mapping[str, Tensor]
AVERAGE, SMOOTHED = "average", "smoothed"
"""What the names of the two moving averages begin with in a checkpoint."""


class TrainedWeights:
    """What is trained of a network, and its copies.

    Args:
        network: The network, or a list of several; afterwards only what is trained has gradients.
        lora: The recipe's adapters.
        seed: Determines the adapters' first values.
        keeps_average: Whether there is a moving average that an algorithm asks.
        keeps_smoothed: Whether there is a slower one, which becomes the final model.

    Raises:
        TrainerUsageError: There is no layer for adapters.
    """

    def __init__(
        self,
        network: nn.Module,
        lora: GenerationLoraSection,
        *,
        seed: int,
        keeps_average: bool,
        keeps_smoothed: bool = False,
    ) -> None:
        self._parts = cast(list[Any], list(network) if isinstance(network, nn.ModuleList) else [network])
        network.requires_grad_(lora.rank is None)
        network.eval()
        if lora.rank is not None:
            self._add_adapters(lora.rank, lora.alpha, seed)
        self._parameters = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._has_adapters = lora.rank is not None
        self._start = self._copy()
        self._average = self._copy() if keeps_average else None
        self._smoothed = self._copy() if keeps_smoothed else None

    @contextmanager
    def as_at_start(self) -> Generator[None]:
        """Within the block the network is that of the start; nothing is trained there."""
        with self._using(self._start):
            yield

    @contextmanager
    def as_average(self) -> Generator[None]:
        """Within the block the network has the moving average; nothing is trained there."""
        if self._average is None:
            raise ValueError("no moving average is kept")
        with self._using(self._average):
            yield

    @torch.no_grad()
    def follow(self, *, decay: float) -> None:
        """Move the average towards the trained weights, of which it keeps the share `decay`."""
        self._move(self._average, decay)

    @torch.no_grad()
    def smooth(self, *, decay: float) -> None:
        """Move the slower average likewise."""
        self._move(self._smoothed, decay)

    @torch.no_grad()
    def end_training(self) -> None:
        """Put the slower average, if there is one, in the place of the trained weights."""
        for name, tensor in (self._smoothed or {}).items():
            self._parameters[name].copy_(tensor)

    def average_tensors(self) -> dict[str, Tensor]:
        """The moving averages by the names of a checkpoint; empty without any."""
        return {
            f"{kind}/{name}": tensor
            for kind, average in ((AVERAGE, self._average), (SMOOTHED, self._smoothed))
            for name, tensor in (average or {}).items()
        }

    def merge(self) -> None:
        """Merge adapters into the network, which is then an ordinary one; it is not trained afterwards."""
        if self._has_adapters:
            for part in self._parts:
                part.fuse_lora(safe_fusing=True)
                part.unload_lora()

    def _add_adapters(self, rank: int, alpha: float, seed: int) -> None:
        import peft

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lora"))
            for part in self._parts:
                targets = [
                    name
                    for name, module in part.named_modules()
                    if isinstance(module, nn.Linear) and "blocks." in name and "norm" not in name
                ]
                if not targets:
                    raise TrainerUsageError(f"lora.rank={rank}: {type(part).__name__} has no linear layers in blocks")
                part.add_adapter(peft.LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=targets))

    def _move(self, average: dict[str, Tensor] | None, decay: float) -> None:
        if average is not None:
            for name, weight in self._parameters.items():
                average[name].lerp_(weight.detach().to(average[name].dtype), 1.0 - decay)

    def _copy(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self._parameters.items()}

    @contextmanager
    def _using(self, copy: Weights) -> Generator[None]:
        own = {name: weight.data for name, weight in self._parameters.items()}
        try:
            for name, weight in self._parameters.items():
                weight.data = copy[name]
            with torch.no_grad():
                yield
        finally:
            for name, weight in self._parameters.items():
                weight.data = own[name]
