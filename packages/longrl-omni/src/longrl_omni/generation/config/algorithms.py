"""The settings of what a step minimises: a published algorithm by name, and each of its parts by itself.

`algorithm` fills in the parts that a recipe doesn't set; the values of each are those of its paper or of the code that
came with it. The direction of an algorithm is that of the process along which it trains: `reverse` ones need steps of
sampling with noise and their densities, `forward` ones only the samples.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from pydantic import Field, FieldSerializationInfo, field_serializer, model_validator

from longrl_trainer.config.sections import Section

AlgorithmName = Literal[
    "flow_grpo", "dance_grpo", "mix_grpo", "grpo_guard", "flow_dppo", "diffusion_nft", "awm", "dgpo"
]
LossName = Literal["clipped", "guard", "dppo", "nft", "awm", "dgpo"]
NoiseName = Literal["ode", "flow", "dance", "cps", "ddim"]
ReductionName = Literal["mean", "sum"]
KlFormName = Literal["mean", "velocity"]
KlAnchorName = Literal["start", "average"]
ScopeName = Literal["group", "step"]
MixingName = Literal["sum", "each"]
NoiseSharingName = Literal["own", "shared"]
WindowName = Literal["all", "progressive", "random"]
REVERSE_LOSSES = frozenset({"clipped", "guard", "dppo"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmParts:
    """The parts of an algorithm that its name determines, with the values of `flow_grpo`; see `AlgorithmSettings`."""

    loss: LossName = "clipped"
    noise: NoiseName = "flow"
    noise_scale: float = 0.7
    window: WindowName = "all"
    clip: float = 1e-4
    reduction: ReductionName = "mean"
    kl_form: KlFormName = "mean"
    kl_anchor: KlAnchorName = "start"
    kl_coefficient: float = 0.0
    deviation_scope: ScopeName = "step"
    reward_mixing: MixingName = "sum"
    initial_noise: NoiseSharingName = "own"
    strength: float = 1.0


ALGORITHMS: dict[AlgorithmName, AlgorithmParts] = {
    "flow_grpo": AlgorithmParts(kl_coefficient=0.04),
    "dance_grpo": AlgorithmParts(
        noise="dance", noise_scale=0.3, deviation_scope="group", reward_mixing="each", initial_noise="shared"
    ),
    "mix_grpo": AlgorithmParts(
        window="progressive", deviation_scope="group", reward_mixing="each", initial_noise="shared"
    ),
    "grpo_guard": AlgorithmParts(loss="guard", clip=2e-6, kl_coefficient=0.04),
    "flow_dppo": AlgorithmParts(loss="dppo", clip=1e-5),
    "diffusion_nft": AlgorithmParts(loss="nft", noise="ode", kl_form="velocity", kl_coefficient=1e-4),
    "awm": AlgorithmParts(loss="awm", noise="ode", kl_form="velocity", kl_anchor="average", kl_coefficient=0.1),
    "dgpo": AlgorithmParts(loss="dgpo", noise="ode", kl_form="velocity", kl_coefficient=1e-3, strength=30.0),
}
"""What each name stands for."""
PART_NAMES = tuple(field.name for field in fields(AlgorithmParts))


class AlgorithmSettings(Section):
    """What a step minimises: an algorithm by name, and those of its parts that are set besides."""

    algorithm: AlgorithmName = "mix_grpo"
    """A published method by name. It determines the settings from here to `strength` that aren't set besides."""
    loss: LossName | None = None
    """Reverse: `clipped` ratios, `guard` with ratios that no drift pulls below 1, `dppo` with a divergence mask.
    Forward: `nft` with reflected branches, `awm` with the loss of pretraining by advantage, `dgpo` with preferences of
    groups.
    """
    noise: NoiseName | None = None
    """The kind of a step with noise: `flow`, `dance`, `cps` or `ddim`; `ode` for none, which only forward losses can
    do with.
    """
    noise_scale: float | None = Field(default=None, ge=0, le=4)
    """How much noise; at most 1 for `cps` and `ddim`."""
    window: WindowName | None = None
    """Which steps have noise and are trained: `all` but the last, or `window_steps` neighbours, whose first moves on by
    one every `window_patience` steps (`progressive`) or is drawn anew in each step (`random`). It is the same for all
    samples of a step, so that samples of a group can be compared.
    """
    clip: float | None = Field(default=None, gt=0)
    """How far a probability ratio may be from 1 before its gradient stops; for `dppo` the divergence that may be."""
    reduction: ReductionName | None = None
    """Whether log-probabilities are averaged or summed over the numbers of a sample; a published clip fits `mean`."""
    kl_form: KlFormName | None = None
    """The divergence from another policy: exact for a step's `mean`, or the squared difference of `velocity`."""
    kl_anchor: KlAnchorName | None = None
    """That policy: the one at the `start`, or a moving `average` of the policy in training."""
    kl_coefficient: float | None = Field(default=None, ge=0)
    """Its weight; 0 needs no reference pass."""
    deviation_scope: ScopeName | None = None
    """Rewards are compared within the group of a prompt, and divided by the standard deviation of the `group` or of the
    whole `step`.
    """
    reward_mixing: MixingName | None = None
    """Several rewards are summed before they are compared, or compared `each` by itself and then summed."""
    initial_noise: NoiseSharingName | None = None
    """Whether samples of a prompt start from one `shared` noise or each from its `own`, as forward losses need."""
    strength: float | None = Field(default=None, gt=0)
    """Beta of `nft` (paper: 1 or 0.1) and of `dgpo` (paper: 10 to 100); others have none."""
    window_steps: int = Field(default=4, ge=1)
    """Number of steps in the window."""
    window_patience: int = Field(default=25, ge=1)
    """Training steps after which a progressive window moves on; after the last place it starts again at the first."""
    trained_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps with noise that is trained, drawn anew in every training step (DanceGRPO: 0.6)."""
    noise_levels_per_sample: int = Field(default=4, ge=1)
    """Forward losses: how many noise levels every sample is noised to in an update."""
    most_advantage: float = Field(default=5.0, gt=0)
    """Larger advantages count as this."""
    average_decay: float = Field(default=0.5, ge=0, lt=1)
    """Largest share of the moving average that stays in a step. `nft` draws its samples with the average, and an
    anchor may be one.
    """
    average_growth: float = Field(default=1e-3, ge=0, le=1)
    """The share is this times the number of steps done, up to `average_decay`."""

    @property
    def parts(self) -> AlgorithmParts:
        """The parts that the name determines, with what is set besides."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in PART_NAMES}
        return replace(
            ALGORITHMS[self.algorithm], **{name: value for name, value in chosen.items() if value is not None}
        )

    @property
    def needs_average(self) -> bool:
        """Whether a moving average of the policy is kept."""
        return self.parts.loss == "nft" or (self.parts.kl_anchor == "average" and self.parts.kl_coefficient > 0)

    @property
    def is_reverse(self) -> bool:
        """Whether it trains along the reverse process."""
        return self.parts.loss in REVERSE_LOSSES

    @field_serializer(*PART_NAMES)
    def _resolve_part(self, _: object, info: FieldSerializationInfo) -> object:
        return getattr(self.parts, info.field_name)

    @model_validator(mode="after")
    def _has_parts_that_fit(self) -> Self:
        parts = self.parts
        if parts.noise in ("cps", "ddim") and parts.noise_scale > 1:
            raise ValueError(f'noise_scale={parts.noise_scale:g} with noise="{parts.noise}": expected at most 1')
        if self.is_reverse and (parts.noise == "ode" or parts.noise_scale == 0):
            raise ValueError(
                f'noise="{parts.noise}" with noise_scale={parts.noise_scale:g} and loss="{parts.loss}": expected some, '
                "as its densities are trained; set `noise`, or a forward algorithm"
            )
        if not self.is_reverse and parts.noise != "ode":
            raise ValueError(f'noise="{parts.noise}" with loss="{parts.loss}": expected "ode"; remove `noise`')
        if not self.is_reverse and parts.kl_form == "mean":
            raise ValueError(f'kl_form="mean" with loss="{parts.loss}", which has no densities: set it to "velocity"')
        if not self.is_reverse and parts.initial_noise == "shared":
            raise ValueError(
                'initial_noise="shared" with noise="ode": all samples of a prompt would be the same; set it to "own"'
            )
        return self
