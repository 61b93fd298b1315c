"""Fixtures for tests: norms that keep float64, a video and a sound of noise, keys without a video.

Meant for this package's tests and for those of packages with their own family or attention backend.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from mrsp_engine.embeddings.key import EmbeddingKey
from mrsp_engine.testing.ranks import RankError, RankPool, run_on_ranks

__all__ = ["NoiseSound", "NoiseVideo", "RankError", "RankPool", "numbered_key", "run_on_ranks", "use_exact_norms"]


def use_exact_norms(model: nn.Module) -> None:
    """Replace a model's RMS norms and expert routers with ones that compute in the weights' own dtype.

    Those of transformers convert to float32 whatever the model's dtype. That is right for training, but hides
    differences below 1e-7 from a comparison in float64. In layers of linear attention, and in norms whose weights are
    around zero, the same conversions are kept from losing digits.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind.endswith(("GatedDelta", "GatedDeltaNet")) or (kind.endswith("RMSNorm") and "Qwen3_5" in kind):
                child.forward = _kept_exact(child.forward)
            elif kind.endswith("RMSNorm") and not isinstance(child, nn.RMSNorm):
                weight = child.get_parameter("weight")
                exact = nn.RMSNorm(weight.shape[0], eps=_epsilon(child), device=weight.device, dtype=weight.dtype)
                exact.weight = weight
                setattr(parent, name, exact)
            elif kind.endswith("TopKRouter"):
                setattr(parent, name, _ExactRouter(child))


def _kept_exact(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in which conversions of float64 to float32 do nothing."""

    @functools.wraps(forward)
    def exact(*args: Any, **kwargs: Any) -> Any:
        with _ExactConversions():
            return forward(*args, **kwargs)

    return exact


class _ExactConversions(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.float, Tensor.to) and args[0].dtype == torch.float64:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            func = Tensor.double if func is Tensor.float else func
        return func(*args, **kwargs)


class _ExactRouter(nn.Module):
    """Selects and weights experts like transformers' routers, with the weights of the selected ones adding up to 1."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.weight = router.get_parameter("weight")
        self.top_k = int(cast(Any, router).top_k)

    def forward(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, E], and weights and indices of the selected experts, [N, K] each."""
        logits_NE = linear(hidden_ND, self.weight)
        weights_NK, experts_NK = logits_NE.softmax(dim=-1).topk(self.top_k, dim=-1)
        return logits_NE, weights_NK / weights_NK.sum(dim=-1, keepdim=True), experts_NK


def _epsilon(norm: nn.Module) -> float:
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise ValueError(f"{type(norm).__name__} has no epsilon under a known name")


class NoiseSound:
    """Seeded noise that gets louder; counts how many samples were read of it.

    Args:
        seed: Seed of the samples.
        num_samples: Number of samples.
    """

    sample_rate = 16_000
    conversion = "as it is"
    fillings: tuple[tuple[int, int], ...] = ()

    def __init__(self, seed: int = 0, num_samples: int = 50_000) -> None:
        noise = np.random.default_rng(seed).standard_normal(num_samples, dtype=np.float32)
        self.samples = 0.3 * noise * np.linspace(0.1, 1.0, num_samples, dtype=np.float32)
        self.content_digest = hashlib.sha256(self.samples.tobytes()).hexdigest()
        self.num_samples = num_samples
        self.num_read = 0

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[npt.NDArray[np.float32]]:
        """See `mrsp_engine.encoding.audio.AudioSource.read_ranges`."""
        for start, end in ranges:
            self.num_read += end - start
            yield self.samples[start:end]


def numbered_key(number: int) -> EmbeddingKey:
    """A key for a store's tests, different for every number."""
    return EmbeddingKey(
        content_digest=f"{number:064x}",
        frame_indices=(0, 4),
        timestamps=(0, 160_000),
        height=112,
        width=140,
        processor_digest="p",
        encoder_fingerprint="e",
        dtype="float32",
        family="f",
    )


class NoiseVideo:
    """A `Video` whose frames are seeded noise, generated when they are read.

    Args:
        seed: Seed of the frames; also determines the content digest.
        frame_count: Number of frames.
        height: Rows of a frame.
        width: Columns of a frame.
        frames_per_second: Sets the timestamps.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        frame_count: int = 24,
        height: int = 84,
        width: int = 112,
        frames_per_second: float = 4.0,
    ) -> None:
        self.frame_count, self.height, self.width = frame_count, height, width
        self.timestamps: npt.NDArray[np.float64] = np.arange(frame_count) / frames_per_second
        self.content_digest = hashlib.sha256(f"{seed} {frame_count} {height} {width}".encode()).hexdigest()
        self.num_read = 0
        self._seed = seed

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return noise that depends on seed and index alone, [F, H, W, 3], and count the frames in `num_read`."""
        self.num_read += len(indices)
        shape = (self.height, self.width, 3)
        frames = [np.random.default_rng((self._seed, index)).integers(0, 256, shape, np.uint8) for index in indices]
        return np.stack(frames)
