"""One sampler on every rank: each generates the responses to its share of the prompts, and all get all of them."""

from collections.abc import Sequence
from dataclasses import replace

from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings, WeightSource


class JointSampler:
    """A rollout engine made of the engines of all ranks; see `RolloutEngine`. All ranks make the same calls together.

    Args:
        engine: This rank's engine.
        ranks: The ranks.
    """

    def __init__(self, engine: RolloutEngine, ranks: Ranks) -> None:
        self._engine = engine
        self._ranks = ranks

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout] | Refusal]:
        """See `RolloutEngine.generate`; every rank has its own random numbers."""
        if sampling.seed is not None:
            sampling = replace(sampling, seed=derive_seed(sampling.seed, "rank", self._ranks.rank))
        return self._ranks.divide(prompts, lambda share: self._engine.generate(share, sampling))

    def update_weights(self, policy: WeightSource) -> None:
        """See `RolloutEngine.update_weights`."""
        self._engine.update_weights(policy)

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`."""
        self._engine.sleep()

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self._engine.close()
