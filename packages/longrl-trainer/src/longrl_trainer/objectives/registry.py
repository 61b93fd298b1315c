"""From the names in a recipe to the objective that a run trains with."""

from collections.abc import Callable

from longrl_trainer.config.sections import ObjectiveName
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.objectives.base import Objective, ResponseLoss
from longrl_trainer.objectives.clipped import ClippedLoss

RESPONSE_LOSSES: dict[ObjectiveName, Callable[[GrpoConfig], ResponseLoss]] = {
    "clipped": lambda config: ClippedLoss(clip_low=config.clip_low, clip_high=config.clip_high),
}


def make_objective(config: GrpoConfig) -> Objective:
    """The objective a recipe asks for."""
    return Objective(
        response_loss=RESPONSE_LOSSES[config.objective](config),
        advantage=config.advantage,
        aggregation=config.aggregation,
        max_response_tokens=config.max_response_tokens,
        kl_coefficient=config.kl_coefficient,
    )
