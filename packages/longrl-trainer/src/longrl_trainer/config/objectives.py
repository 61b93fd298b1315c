"""The settings of what reinforcement learning minimises: a named objective, and each of its parts by itself.

`objective` names a published method and fills in the parts that a recipe doesn't set. The values of each are in
`OBJECTIVES`, as changes of the default. Imports nothing heavy.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from pydantic import Field, FieldSerializationInfo, field_serializer, model_validator

from longrl_trainer.config.sections import (
    AdvantageName,
    AggregationName,
    KlEstimatorName,
    KlPlaceName,
    LossName,
    ObjectiveName,
    Section,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveParts:
    """The parts of an objective that its name determines, with the values of `grpo`; see `ObjectiveSettings`."""

    advantage: AdvantageName = "grpo"
    loss: LossName = "clipped"
    clip_low: float = 0.2
    clip_high: float = 0.28
    aggregation: AggregationName = "token"
    kl_estimator: KlEstimatorName = "k3"
    kl_place: KlPlaceName = "loss"
    overlong_buffer: float = 0.0
    extra_rounds: int = 0
    temporal_weight: float = 0.0


OBJECTIVES: dict[ObjectiveName, ObjectiveParts] = {
    "grpo": ObjectiveParts(),
    "dr_grpo": ObjectiveParts(advantage="dr_grpo", clip_high=0.2, aggregation="constant"),
    "rloo": ObjectiveParts(advantage="rloo", clip_high=0.2, aggregation="constant"),
    "reinforce_plus_plus": ObjectiveParts(
        advantage="reinforce_plus_plus", clip_high=0.2, kl_estimator="k1", kl_place="reward"
    ),
    "reinforce_plus_plus_baseline": ObjectiveParts(
        advantage="reinforce_plus_plus_baseline", clip_high=0.2, kl_estimator="k2"
    ),
    "gdpo": ObjectiveParts(advantage="gdpo"),
    "dapo": ObjectiveParts(overlong_buffer=0.2, extra_rounds=2),
    "gspo": ObjectiveParts(loss="gspo", clip_low=3e-4, clip_high=4e-4, aggregation="sequence"),
    "cispo": ObjectiveParts(loss="cispo", clip_low=1.0, clip_high=4.0),
    "sapo": ObjectiveParts(loss="sapo", aggregation="sequence"),
    "t_grpo": ObjectiveParts(temporal_weight=0.3),
}
"""What each name stands for. `dapo` follows its paper's ratio of buffer to longest response, but bounds its dynamic
sampling; `gspo` has its paper's clip; for `cispo`, whose paper gives no bound, a weight may be at most 5.
"""
MOST_ROUNDS = 32
"""How often a step may take questions at most."""
PART_NAMES = tuple(field.name for field in fields(ObjectiveParts))


class ObjectiveSettings(Section):
    """What a step minimises: an objective by name, and those of its parts that are set besides."""

    objective: ObjectiveName = "grpo"
    """A published method by name. It determines the settings from here to `temporal_weight` that aren't set themselves;
    one that is set, in the recipe too, counts more than the name.
    """
    advantage: AdvantageName | None = None
    """How responses are compared: `grpo` divides by the group's standard deviation, `dr_grpo` does not, `rloo` compares
    with the others' mean; `reinforce_plus_plus` compares with the whole step, and its `baseline` form with the group
    first; `gdpo` normalises every reward by itself, and then their sum over the step.
    """
    loss: LossName | None = None
    """`clipped` has one probability ratio per token, `gspo` one per response; `cispo` clips the weight of a token but
    keeps its gradient; `sapo` fades gradients out instead of clipping them.
    """
    clip_low: float | None = Field(default=None, gt=0, le=1)
    """How far a probability ratio may fall below 1 before its gradient stops (`cispo`: before its weight stays)."""
    clip_high: float | None = Field(default=None, gt=0)
    """How far it may rise above 1."""
    aggregation: AggregationName | None = None
    """Weight of a response in the loss: by its number of tokens, equal for all, or by its tokens over a constant."""
    kl_estimator: KlEstimatorName | None = None
    """Estimate of the divergence by token: `k1` is the difference of log-probabilities, `k2` half its square, `k3` is
    never negative and unbiased.
    """
    kl_place: KlPlaceName | None = None
    """Where the divergence counts: in the `loss`, or as a cost in the `reward`, which takes one more pass over the
    responses in each step.
    """
    overlong_buffer: float | None = Field(default=None, ge=0, le=1)
    """Share of `max_response_tokens` at whose end a reward is lowered by `overlong_penalty`, and within which by less;
    0 for no penalty.
    """
    extra_rounds: int | None = Field(default=None, ge=0, lt=MOST_ROUNDS)
    """How many times a step may take `prompts_per_step` further questions, in place of those whose responses all have
    the same reward (dynamic sampling). If that isn't enough it trains on fewer.
    """
    temporal_weight: float | None = Field(default=None, ge=0)
    """How much more a question about videos counts if the model answers it better than with their frames in a random
    order: its advantages are multiplied by 1 plus this. 0 asks nothing in random order.
    """
    temporal_margin: float = Field(default=0.0, ge=0, le=1)
    """With a `temporal_weight`: by how much more than this the share of right answers has to be higher."""
    shuffled_responses: int | None = Field(default=None, ge=1)
    """With a `temporal_weight`: responses per question to frames in a random order; by default half of `group_size`."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """What a response of `max_response_tokens` costs, if there is an `overlong_buffer`."""
    sapo_temperature_positive: float = Field(default=1.0, gt=0)
    """With `sapo`: how fast gradients fade away from ratio 1 where the advantage is positive."""
    sapo_temperature_negative: float = Field(default=1.05, gt=0)
    """The same where it is negative."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the starting model; 0 needs no reference pass."""
    kl_importance: bool = False
    """Multiply the divergence in the loss by the token's probability ratio, which makes its gradient unbiased."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the entropy of the next token's distribution, which is raised if it is greater than 0."""

    @property
    def parts(self) -> ObjectiveParts:
        """The parts that the name determines, with what is set besides."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in PART_NAMES}
        return replace(
            OBJECTIVES[self.objective], **{name: value for name, value in chosen.items() if value is not None}
        )

    @field_serializer(*PART_NAMES)
    def _resolve_part(self, _: object, info: FieldSerializationInfo) -> object:
        return getattr(self.parts, info.field_name)

    @model_validator(mode="after")
    def _has_parts_that_fit(self) -> Self:
        parts = self.parts
        if parts.loss == "sapo" and (self.clip_low is not None or self.clip_high is not None):
            name = "clip_high" if self.clip_low is None else "clip_low"
            raise ValueError(f'{name}={getattr(self, name)} with loss="sapo", which clips nothing: remove it')
        if self.kl_importance and parts.kl_place == "reward":
            raise ValueError('kl_importance=true with kl_place="reward": expected kl_place="loss"')
        if self.kl_coefficient and parts.kl_place == "reward" and parts.advantage == "gdpo":
            raise ValueError(
                'kl_place="reward" with advantage="gdpo", to which it is no reward: set kl_place to "loss"'
            )
        if self.kl_coefficient and parts.kl_place == "loss" and parts.kl_estimator == "k1" and not self.kl_importance:
            raise ValueError(
                'kl_estimator="k1" with kl_place="loss": its gradient is 0 on average; set kl_importance to true, '
                'kl_place to "reward" or kl_estimator to "k2" or "k3"'
            )
        return self
