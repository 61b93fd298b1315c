"""How fast a step was, and what it moved: tokens per second, utilisation, waiting, hits of the store, bytes.

Counters are read before and after; what isn't known is left out. The figures are the same on every rank. They are no
part of what a run computes, and depend on the machine, on what was prefetched, and on where a run was continued.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.training.ranks import Ranks
from longrl_trainer.training.scoring import StepWork
from mrsp_engine.families.base import Policy
from mrsp_engine.planner.hardware import recognise_accelerator
from mrsp_engine.rollout.base import RolloutEngine, count_received

ROLLOUT, UPDATE = "rollout", "update"
"""The stages in which the sampler and the trainer compute."""
PASSING = frozenset({"seconds", "padding_fraction", "tokens_per_second", "utilisation", "store", "moved_bytes"})
"""What the journal says of a step that depends on machine and ranks, and on where a run was continued."""


class Stopwatch:
    """Seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Add the block's time to `stage`."""
        started = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - started


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounters:
    """The counters of one rank at one moment.

    Attributes:
        hits: Media that the store had when they were needed.
        misses: Media that had to be encoded then.
        bytes_read: Bytes of embeddings read from disk.
        bytes_received: Bytes of weights that the sampler got; None if that isn't known, or there is no sampler.
    """

    hits: int
    misses: int
    bytes_read: int
    bytes_received: int | None

    def since(self, before: "StepCounters") -> "StepCounters":
        """The difference to an earlier moment."""
        are_known = self.bytes_received is not None and before.bytes_received is not None
        return StepCounters(
            hits=self.hits - before.hits,
            misses=self.misses - before.misses,
            bytes_read=self.bytes_read - before.bytes_read,
            bytes_received=(self.bytes_received or 0) - (before.bytes_received or 0) if are_known else None,
        )


class StepMeter:
    """Measures one step after the other; all ranks make the same calls together.

    Args:
        config: The recipe.
        policy: The model, whose store is read.
        ranks: The processes of the run.
        sampler: What draws the responses, if anything.
    """

    def __init__(
        self, config: TrainingConfig, policy: Policy, ranks: Ranks, sampler: RolloutEngine | None = None
    ) -> None:
        self._policy, self._sampler, self._ranks = policy, sampler, ranks
        self._peak = config.peak_operations or peak_of(policy)
        self._before = self._count()

    def begin(self) -> None:
        """Begin with a step."""
        self._before = self._count()

    def figures(
        self, work: StepWork, seconds: Mapping[str, float], *, num_sampled: int | None = None
    ) -> dict[str, Any]:
        """What the journal says of the step.

        Args:
            work: What the trainer computed.
            seconds: The time of its stages.
            num_sampled: Tokens that the sampler drew, if there is one.
        """
        own = self._count().since(self._before)
        of_ranks = self._ranks.exchange(own)
        speeds = {
            "trainer": work.logical_tokens / seconds[UPDATE],
            "trainer_computed": work.computed_tokens / seconds[UPDATE],
        }
        if num_sampled is not None:
            speeds["sampler"] = num_sampled / seconds[ROLLOUT]
        moved = {"embeddings_read": sum(counters.bytes_read for counters in of_ranks)}
        received = [counters.bytes_received for counters in of_ranks if counters.bytes_received is not None]
        if len(received) == len(of_ranks):
            moved["weights_to_sampler"] = sum(received)
        found: dict[str, Any] = {
            "row_tokens": {"logical": work.logical_tokens, "computed": work.computed_tokens},
            "padding_fraction": work.padding_fraction,
            "tokens_per_second": speeds,
            "store": {
                "hits": sum(counters.hits for counters in of_ranks),
                "misses": sum(counters.misses for counters in of_ranks),
            },
            "moved_bytes": moved,
        }
        if self._peak is not None:
            found["utilisation"] = work.operations / (seconds[UPDATE] * self._peak * self._ranks.size)
        return found

    def _count(self) -> StepCounters:
        store = self._policy.store
        return StepCounters(
            hits=store.lookups.hits,
            misses=store.lookups.misses,
            bytes_read=store.disk.bytes_read,
            bytes_received=None if self._sampler is None else count_received(self._sampler),
        )


def peak_of(policy: Policy) -> float | None:
    """Operations per second of the device that a model is on, by its data sheet; None if it isn't known here."""
    if policy.device.type != "cuda" or policy.dtype != torch.bfloat16:
        return None
    accelerator = recognise_accelerator(torch.cuda.get_device_name(policy.device))
    return None if accelerator is None else accelerator.matrix_rate
