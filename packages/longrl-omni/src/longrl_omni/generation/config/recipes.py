"""The settings of `longrl generate-grpo` and `longrl generate`: model, prompts, sampling, rewards, algorithm, run."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longrl_omni.generation.config.algorithms import AlgorithmSettings
from longrl_trainer.config.effects import Effect
from longrl_trainer.config.sections import OptimizerName, RewardWeights, Section, SignalName


class GenerationModelSection(Section):
    """The model that generates."""

    folder: Path
    """A pipeline in diffusers' layout, or a tiny model of the quickstart."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Effect.NONE] = "auto"
    """Where it computes; `auto` takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the network's weights; latents, densities and losses are float32 in any case."""


class SamplingSection(Section):
    """How samples are drawn."""

    steps: int = Field(default=10, ge=2)
    """Steps of the sampler, for training and for evaluation."""
    guidance: float = Field(default=1.0, ge=1)
    """Classifier-free guidance; 1 for none. Models with guidance as an input of the network get it there."""
    guidance_in_training: bool = True
    """Whether the loss is that of guided velocities too. Reverse algorithms need it, since their probability ratios
    would not begin at 1 otherwise; forward ones may leave it out.
    """
    height: int | None = Field(default=None, ge=8)
    """Height of a picture or clip in pixels; by default that of the model."""
    width: int | None = Field(default=None, ge=8)
    """Its width."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of a clip; by default those of the model."""
    samples_per_pass: int = Field(default=64, ge=1)
    """Samples that go through the network together. Training repeats a sampler's passes in the same batches, because
    other ones round otherwise, which changes ratios by more than a published clip allows.
    """


class GenerationLoraSection(Section):
    """Adapters in place of all weights of the network."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of the adapters; without one all weights are trained."""
    alpha: float = Field(default=64.0, gt=0)
    """Adapters are scaled by alpha / rank."""


class GenerateConfig(Section):
    """Draw samples of a model for prompts, and write them as PNG or MP4 files."""

    output: Path
    """Folder of the pictures or clips and of `samples.jsonl`; it must not exist or be empty."""
    model: GenerationModelSection
    prompts: Path
    """Text file with one prompt per line."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Pictures or clips per prompt."""
    seed: int = Field(default=0, ge=0)
    """Determines the noise."""
    rewards: RewardWeights = Field(default={})
    """Rewards that judge the samples, by name; their values are written to `samples.jsonl`."""
    sampling: SamplingSection = SamplingSection()


class GenerateGrpoConfig(AlgorithmSettings):
    """Reinforcement learning of a model that generates pictures or clips."""

    output: Annotated[Path, Effect.PLACE]
    """Folder of this run: settings, journal, checkpoints and the final model."""
    model: Annotated[GenerationModelSection, Effect.PLACE]
    prompts: Annotated[Path, Effect.PLACE]
    """Text file with one prompt per line, to train on."""
    held_out_prompts: Annotated[Path, Effect.PLACE]
    """Prompts that are only evaluated on, before and after."""
    rewards: RewardWeights
    """Reward names and their weights; one with settings of its own has a table, `[rewards.NAME]`, with its `weight`."""
    held_out_reward: str
    """A reward that is not trained, and is logged beside the trained ones in every step: when it falls while they rise,
    they are being exploited. One with settings of its own has a table, `[rewards.NAME]`, with the weight 0.
    """
    steps: Annotated[int, Effect.LENGTH] = Field(ge=1)
    """Steps of sampling and updating."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts per step."""
    group_size: int = Field(default=8, ge=2)
    """Samples per prompt."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer steps on the same samples."""
    learning_rate: Annotated[float, Effect.FOLLOWING] = Field(gt=0)
    """Peak learning rate."""
    optimizer: OptimizerName = "adamw"
    """`muon` updates the matrices inside the network with Muon and the rest with AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to its peak; constant afterwards."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of matrices."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    final_average_decay: float = Field(default=0.0, ge=0, lt=1)
    """The final model is a moving average of the trained weights, which keeps this share of itself in every step, and
    less in the first ones: step / (step + 10). 0 takes the weights of the last step. The average has less of the noise
    that single updates leave in pictures (arXiv 2312.02696).
    """
    max_ratio_error: Annotated[float, Effect.NONE] = Field(default=1e-6, gt=0)
    """The run stops when the policy, asked again before its first update of a step, differs from what the sampler did:
    by the mean absolute logarithm of the probability ratio, and for forward algorithms by that of the velocity.
    """
    evaluation_samples: Annotated[int, Effect.NONE] = Field(default=4, ge=1)
    """Pictures or clips per held-out prompt, before and after; all of them are in memory together."""
    seed: int = Field(default=0, ge=0)
    """Determines every shuffle and every noise."""
    checkpoint_every_steps: Annotated[int, Effect.NONE] = Field(default=20, ge=1)
    """Steps between saves of the run's state; an interrupted run repeats at most this many steps."""
    checkpoints_kept: Annotated[int, Effect.NONE] = Field(default=1, ge=1)
    """Number of newest saves that are kept; the one with the best reward is kept besides."""
    warning_signal: Annotated[SignalName, Effect.NONE] = "SIGUSR1"
    """Signal at which a run saves its state after the current step and ends, as it does at SIGTERM."""
    sampling: SamplingSection = SamplingSection()
    lora: GenerationLoraSection = GenerationLoraSection()

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        if self.window_steps > self.sampling.steps - 1 and self.parts.window != "all":
            raise ValueError(
                f"window_steps={self.window_steps}: expected at most {self.sampling.steps - 1}, all steps but the last "
                f"of sampling.steps={self.sampling.steps}"
            )
        if self.sampling.samples_per_pass % self.group_size:
            raise ValueError(
                f"sampling.samples_per_pass={self.sampling.samples_per_pass}: expected a multiple of "
                f"group_size={self.group_size}, so that a group is computed together"
            )
        if self.is_reverse and self.sampling.guidance > 1 and not self.sampling.guidance_in_training:
            raise ValueError(
                f'sampling.guidance_in_training=false with algorithm="{self.algorithm}": expected true, because a '
                "reverse algorithm trains what was sampled; set it, or sampling.guidance to 1"
            )
        entry = self.rewards.get(self.held_out_reward, 0.0)
        if entry if isinstance(entry, float | int) else entry["weight"]:
            raise ValueError(
                f"held_out_reward={self.held_out_reward!r}: expected one that is not among the rewards, or has the "
                "weight 0 there"
            )
        return self
