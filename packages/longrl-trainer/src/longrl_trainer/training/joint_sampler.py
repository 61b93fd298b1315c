"""One sampler on every rank: each copy of the model generates the responses to its share of the prompts.

All ranks get all responses. Neighbouring ranks may hold one copy together; they are given the same prompts.
"""

from collections.abc import Sequence
from dataclasses import replace

from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings, WeightSource, count_received


class JointSampler:
    """A rollout engine made of the engines of all ranks; see `RolloutEngine`. All ranks make the same calls together.

    Args:
        engine: This rank's engine.
        ranks: The ranks.
        tensor_ranks: Number of neighbours that hold one copy of the model together.
    """

    def __init__(self, engine: RolloutEngine, ranks: Ranks, tensor_ranks: int = 1) -> None:
        self._engine = engine
        self._ranks = ranks
        self._tensor_ranks = tensor_ranks

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout] | Refusal]:
        """See `RolloutEngine.generate`; every copy has its own random numbers."""
        if sampling.seed is not None:
            first_rank = self._ranks.rank - self._ranks.rank % self._tensor_ranks
            sampling = replace(sampling, seed=derive_seed(sampling.seed, "rank", first_rank))
        return self._ranks.divide(
            prompts, lambda share: self._engine.generate(share, sampling), same_ranks=self._tensor_ranks
        )

    def update_weights(self, policy: WeightSource) -> None:
        """See `RolloutEngine.update_weights`."""
        self._engine.update_weights(policy)

    @property
    def bytes_received(self) -> int | None:
        """See `CountsWeights`; of this rank's engine."""
        return count_received(self._engine)

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`."""
        self._engine.sleep()

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self._engine.close()
