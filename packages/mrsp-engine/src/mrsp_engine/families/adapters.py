"""What a trainer attaches to a policy: adapters, and passes that all ranks make together.

This is what the engine has to know of them. Whoever trains makes them (`longrl_trainer.training.adapters`,
`longrl_trainer.training.zero`); the engine doesn't depend on a library for that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Adapters", "JointPasses"]


class Adapters(Protocol):
    """Low-rank matrices beside some weights of a model, trained in their place (LoRA); the weights stay as they are."""

    @property
    def rank(self) -> int:
        """Inner dimension of the matrices."""
        ...

    @property
    def sampled_layers(self) -> Sequence[str]:
        """Names of the layers that have some and that a sampler runs which gets embeddings."""
        ...

    def merged_weights(self, module: nn.Module, *, device: torch.device | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield a module's weights under the names that they have without adapters, with the adapters added.

        Each is computed when its turn comes and is complete, so ranks that share sharded weights iterate together.

        Args:
            module: The model, or a part of it.
            device: Where changed weights are placed; where they are computed by default.
        """
        ...

    def train(self) -> None:
        """Let gradients reach all of them, also those in a part of the model that was frozen meanwhile."""
        ...

    def turned_off(self) -> AbstractContextManager[None]:
        """Within the block, the model computes what it computed before it had adapters."""
        ...

    def save(self, folder: Path) -> None:
        """Write them in PEFT's layout, complete or not at all; an older folder is replaced."""
        ...

    def write_for_sampler(self, folder: Path, checkpoint_name: Callable[[str], str]) -> None:
        """Write what a sampler that gets embeddings needs of them into an empty folder, in PEFT's layout.

        Args:
            folder: The folder.
            checkpoint_name: The names of weights in the checkpoint, which are those that the sampler knows.
        """
        ...


class JointPasses(Protocol):
    """Forward and backward passes of a policy's row scorer, all of which all ranks make together."""

    def forward(self, row: Any, /, **settings: Any) -> tuple[Tensor, Tensor]:
        """See `mrsp_engine.row_scorer.RowScorer.forward`."""
        ...

    def backward(self, loss: Tensor, /) -> None:
        """Add up the gradients of this rank's loss and of those of the other ranks."""
        ...

    def largest(self, number: int, /) -> int:
        """The largest of all ranks' numbers, such as how often a layer is called that all ranks gather together."""
        ...
