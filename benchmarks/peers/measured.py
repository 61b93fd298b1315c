"""How an update is measured, the same in every environment: only torch and the standard library.

A program loads the workload, computes the update a few times after one that isn't counted, and writes what it found as
one line of JSON: processor time of each, memory beyond the model, and the loss and gradient norm, by which it is known
that all programs computed the same.

Shapes: P prompt tokens, G responses, R tokens of each.
"""

import json
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Update:
    """The group of one question.

    Attributes:
        model: The checkpoint folder.
        prompt_ids: Tokens of the prompt, P; with images, one placeholder for each embedding.
        response_ids: Tokens of the responses, [G, R].
        advantages: One number per response.
        images: The pictures before the question.
        question: The text that the prompt was made from.
    """

    model: Path
    prompt_ids: list[int]
    response_ids: list[list[int]]
    advantages: list[float]
    images: list[Path]
    question: str

    @classmethod
    def read(cls, path: Path) -> "Update":
        """Read what `compare.py` wrote."""
        values: dict[str, Any] = json.loads(path.read_text())
        values["model"] = Path(values["model"])
        values["images"] = [Path(image) for image in values["images"]]
        return cls(**values)

    @property
    def num_tokens(self) -> int:
        """G R, by which the losses of all tokens are divided."""
        return sum(map(len, self.response_ids))


def measure(compute_loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], repeats: int) -> None:
    """Compute loss and gradients, and print what it took."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    seconds: list[float] = []
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    loss, norm = torch.zeros(()), torch.zeros(())
    for repeat in range(repeats + 1):
        for parameter in trained:
            parameter.grad = None
        start = time.process_time()
        loss = compute_loss()
        loss.backward()
        if repeat:
            seconds.append(time.process_time() - start)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    found = {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held,
        "loss": loss.item(),
        "gradient_norm": norm.item(),
    }
    print("\n" + json.dumps(found), flush=True)
