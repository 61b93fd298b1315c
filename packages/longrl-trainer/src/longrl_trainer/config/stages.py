"""The settings: one frozen model per stage, made of sections that the stages share.

The models check values (type, range, known key). What only a run can know (whether a folder exists, which rewards are
installed) is checked where it is used. How changing a value affects a run that has begun is in the annotation
(`config.effects`). Paths are relative to the working directory. Imports nothing heavy, so that a command can show its
settings at once.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, model_validator

from longrl_trainer.config.effects import Effect
from longrl_trainer.config.held_out import RULES, HeldOutSection
from longrl_trainer.config.objectives import ObjectiveSettings
from longrl_trainer.config.sections import (
    ActivationsName,
    CorrectionName,
    DataSection,
    DtypeName,
    LoraSection,
    ModelSection,
    OptimizerName,
    ParallelSection,
    RewardWeights,
    SamplerSection,
    Section,
    ShardingSection,
    SignalName,
    StoredName,
    TrackerName,
    VisionName,
)

GAP_LIMITS: dict[DtypeName, float] = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 0.05}
"""Default of `max_logprob_gap`, by dtype."""


MOST_SAMPLER_RANK = 512
"""The highest rank of adapters in vLLM."""


OVERLONG_REWARD = "overlong"
"""The name of the penalty for long responses among the rewards of a response."""


class TrainingConfig(Section):
    """Settings of every stage with a training loop."""

    output: Annotated[Path, Effect.PLACE]
    """Folder of this run: settings, journal, checkpoints and the final model."""
    seed: int = Field(default=0, ge=0)
    """Determines every shuffle and every sampled token."""
    dtype: DtypeName = "float32"
    """Dtype of the model's weights while training (the optimizer keeps its own in at least float32)."""
    checkpoint_every_steps: Annotated[int, Effect.NONE] = Field(default=50, ge=1)
    """Steps between saves of the run's state; an interrupted run repeats at most this many steps."""
    checkpoints_kept: Annotated[int, Effect.NONE] = Field(default=1, ge=1)
    """Number of newest saves that are kept; the one with the best loss or reward is kept besides."""
    warning_signal: Annotated[SignalName, Effect.NONE] = "SIGUSR1"
    """Signal at which a run saves its state after the current step and ends, as it does at SIGTERM; Slurm sends it
    before a job's time is up if asked to (`--signal=USR1@600`).
    """
    learning_rate: Annotated[float, Effect.FOLLOWING] = Field(gt=0)
    """Peak learning rate of AdamW."""
    optimizer: OptimizerName = "adamw"
    """`muon` updates the matrices inside the network with Muon and the rest with AdamW."""
    muon_learning_rate_ratio: float = Field(default=5.0, gt=0)
    """Muon's learning rate as a multiple of AdamW's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of matrices; biases and norms have none."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    train_vision: VisionName = "frozen"
    """The trained part of the vision encoder: `frozen` for none, so that each video is encoded once for all runs;
    `projector`, which runs in every step on stored features of the tower; or `all`, encoding each video once per
    step.
    """
    stored: Annotated[StoredName, Effect.NONE] = "embeddings"
    """What the store keeps for videos while vision is frozen: embeddings; `frames`, which are encoded in every step
    that needs them; or the `smaller` of the two.
    """
    share_prompt: Annotated[bool, Effect.NONE] = True
    """Compute each video's prompt once for all its questions or responses; `false` repeats it, with the same result."""
    blind: bool = False
    """Train without showing the videos; required for a model without vision."""
    prefetch_steps: Annotated[int, Effect.NONE] = Field(default=2, ge=0)
    """Steps whose videos are opened and encoded in the background while another step runs; 0 for none."""
    questions_may_change: Annotated[bool, Effect.NONE] = False
    """Continue an interrupted run even if the usable questions have changed since it began."""
    tracker: Annotated[TrackerName, Effect.NONE] = "tensorboard"
    """Where every step's numbers go besides the run's journal: files for TensorBoard in the run's folder; a project of
    Weights & Biases (`wandb`) or Trackio, each an extra of its own; or nowhere.
    """
    peak_operations: Annotated[float | None, Effect.NONE] = Field(default=None, gt=0)
    """Floating-point operations per second that one device makes at most in `dtype`, for the utilisation among every
    step's numbers. Known for A100, H100 and H200 in bfloat16; for others there is none unless this is set.
    """
    activation_checkpointing: Annotated[ActivationsName, Effect.NONE] = "none"
    """`recompute` keeps only every layer's input for the backward pass, and computes the rest again there; `offload`
    also keeps these inputs in host memory.
    """
    evaluation: HeldOutSection = HeldOutSection()
    sampler: SamplerSection = SamplerSection()
    parallel: Annotated[ParallelSection, Effect.NONE] = ParallelSection()
    sharding: Annotated[ShardingSection, Effect.NONE] = ShardingSection()
    lora: LoraSection = LoraSection()

    @model_validator(mode="after")
    def _trains_one_kind_of_weights(self) -> Self:
        if self.lora.rank is not None and self.train_vision != "frozen":
            raise ValueError(
                f'train_vision="{self.train_vision}" with lora.rank={self.lora.rank}: expected "frozen", since nothing '
                "but adapters is trained; set lora.vision for adapters in the vision"
            )
        return self

    @property
    def trained_vision(self) -> VisionName:
        """The part of the vision whose output changes during training."""
        return "all" if self.lora.vision else self.train_vision


class SftConfig(TrainingConfig):
    """CoT-SFT: learn to generate the dataset's own reasoning and answers."""

    model: Annotated[ModelSection, Effect.PLACE]
    data: DataSection
    epochs: Annotated[int, Effect.LENGTH] = Field(default=1, ge=1)
    """Number of times that every question is seen."""
    rows_per_step: int = Field(default=8, ge=1)
    """Packed rows (one video each) per optimizer step."""
    questions_per_row: int = Field(default=8, ge=1)
    """At most this many questions share one row; a video with more questions gets several rows."""
    blind_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows shown without their video, so that a blind evaluation measures what the text gives away and not
    the effect of an unfamiliar prompt.
    """
    max_loss_rise: Annotated[float, Effect.NONE] = Field(default=3.0, gt=0)
    """The run stops before an update whose loss exceeds the median of the last 20 steps by more than this."""
    answer_form: Literal["letter", "text"] = "letter"
    """Content of the answer block: the option's letter, or its text, which a small model learns much faster."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises to its peak."""
    min_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Final value of the cosine, as a share of the peak."""


class GrpoConfig(ObjectiveSettings, TrainingConfig):
    """GRPO and variants: learn from rewards for the model's own responses."""

    model: Annotated[ModelSection, Effect.PLACE]
    data: DataSection
    steps: Annotated[int, Effect.LENGTH] = Field(ge=1)
    """Rollout-and-update steps."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Questions per step."""
    group_size: int = Field(default=8, ge=2)
    """Responses per question."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; log-probabilities are taken at the same temperature."""
    max_response_tokens: int = Field(default=1024, ge=1)
    """Maximum tokens of a response; a longer one is cut off and counts as unfinished."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to its peak; constant afterwards."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimizer steps on the same rollouts."""
    rewards: RewardWeights = Field(default={"answer": 0.9, "format": 0.1})
    """Reward names and their weights; one with settings of its own has a table, `[rewards.NAME]`, with its `weight`.
    Questions of types that none of them judges are left out.
    """
    max_logprob_gap: Annotated[float | None, Effect.NONE] = Field(default=None, gt=0)
    """The run stops when sampler and trainer differ by more than this (mean absolute log-probability). By default 1e-5,
    which is far more than rounding causes with the same weights, and 0.05 in bfloat16, which rounds coarsely.
    """
    sampler_correction: CorrectionName | None = None
    """Importance weights for the difference between sampler and trainer: by token, or by sequence as a product over its
    tokens; larger ones than `sampler_correction_cap` are truncated to it, or masked, that is, left out. By default
    `token_truncate` in bfloat16, and otherwise `none`, since both then compute the same.
    """
    sampler_correction_cap: float = Field(default=2.0, ge=1)
    """The largest importance weight that is kept."""
    min_reward_share: Annotated[float, Effect.NONE] = Field(default=0.1, ge=0, lt=1)
    """The run stops before an update when the mean reward of the last 10 steps is below this share of the best mean of
    any 10 steps before; 0 never stops it.
    """
    journal_groups: Annotated[int, Effect.NONE] = Field(default=2, ge=0)
    """Groups per step whose responses are written to `rollouts.jsonl`."""

    @model_validator(mode="after")
    def _has_one_overlong_reward(self) -> Self:
        if self.parts.overlong_buffer and OVERLONG_REWARD in self.rewards:
            raise ValueError(
                f"rewards.{OVERLONG_REWARD}: that is what the penalty of overlong_buffer={self.parts.overlong_buffer} "
                "is called; set that to 0, or rename the reward"
            )
        return self

    @model_validator(mode="after")
    def _shows_what_it_shuffles(self) -> Self:
        if self.parts.temporal_weight and self.blind:
            raise ValueError(
                f"temporal_weight={self.parts.temporal_weight} with blind=true: there are no frames to shuffle; set it "
                "to 0"
            )
        return self

    @model_validator(mode="after")
    def _samples_what_it_trains(self) -> Self:
        lora, sampler = self.lora, self.sampler
        if lora.dropout:
            raise ValueError(f"lora.dropout={lora.dropout}: expected 0 in grpo, because the sampler drops nothing")
        if sampler.lora_sync == "adapter":
            needed = {"lora.rank": lora.rank is not None, 'sampler.engine="vllm"': sampler.engine == "vllm"}
            lacking = next((name for name, is_there in needed.items() if not is_there), None)
            if lacking is not None:
                raise ValueError(f'sampler.lora_sync="adapter": expected with {lacking}; omit it or set that')
        if lora.rank is not None and lora.rank > MOST_SAMPLER_RANK and sampler.takes_adapters(self.dtype):
            raise ValueError(
                f"lora.rank={lora.rank}: vLLM takes adapters up to rank {MOST_SAMPLER_RANK}; lower it, or set "
                'sampler.lora_sync to "merged"'
            )
        return self

    @property
    def logprob_gap_limit(self) -> float:
        """`max_logprob_gap`, or the dtype's default."""
        return GAP_LIMITS[self.dtype] if self.max_logprob_gap is None else self.max_logprob_gap

    @field_serializer("max_logprob_gap")
    def _resolve_gap(self, _: float | None) -> float:
        return self.logprob_gap_limit

    @property
    def correction(self) -> CorrectionName:
        """`sampler_correction`, or the dtype's default."""
        if self.sampler_correction is not None:
            return self.sampler_correction
        return "token_truncate" if self.dtype == "bfloat16" else "none"

    @field_serializer("sampler_correction")
    def _resolve_correction(self, _: CorrectionName | None) -> CorrectionName:
        return self.correction


class EvaluateConfig(Section):
    """Accuracy on one split, with everything needed to interpret it."""

    model: ModelSection
    allow_seen_videos: bool = False
    """Evaluate on the held-out split even if the model was trained on some of its videos."""
    step: int | Literal["best"] | None = None
    """Evaluate a checkpoint of a run of training, whose folder is then `model.folder`: the one after so many steps, or
    the `best`. Its model is exported into a folder beside the output meanwhile.
    """
    data: DataSection
    output: Path
    """The JSON file to write."""
    blind: bool = False
    """Evaluate without showing the video."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 selects the most probable token."""
    max_response_tokens: int = Field(default=1024, ge=1)
    """Maximum tokens of a response; a longer one is cut off."""
    limit: int | None = Field(default=None, ge=1)
    """Ask at most this many questions, spread evenly over the split."""
    seed: int = Field(default=0, ge=0)
    """Determines the sampled tokens when the temperature is not 0."""
    dtype: DtypeName = "float32"
    """Dtype of the model's weights."""
    rewards: RewardWeights = Field(default=dict.fromkeys(RULES, 1.0))
    """What judges the answers, as in training; the score of an answer is the sum by weight. Questions of types that
    none of them judges are left out.
    """
    sampler: SamplerSection = SamplerSection()
