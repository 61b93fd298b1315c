"""Sections shared by the recipes of several stages: model, data, sampler, ranks.

Every setting's docstring is its help text.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from longrl_files.folders import follow_links
from longrl_trainer.config.effects import Effect, WithoutEffect

ObjectiveName = Literal[
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "gdpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "t_grpo",
]


AdvantageName = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo"]


LossName = Literal["clipped", "gspo", "cispo", "sapo"]


AggregationName = Literal["token", "sequence", "constant"]


KlEstimatorName = Literal["k1", "k2", "k3"]


KlPlaceName = Literal["loss", "reward"]


CorrectionName = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
"""Where the numbers of every step go besides the run's own journal."""

OptimizerName = Literal["adamw", "muon"]


DtypeName = Literal["float32", "bfloat16", "float64"]


VisionName = Literal["frozen", "projector", "all"]


StoredName = Literal["embeddings", "frames", "smaller"]


PresetName = Literal["checkpoint", "longvila_r1", "longvila_r1_hour"]


ActivationsName = Literal["none", "recompute", "offload"]


ShardingName = Literal["none", "fsdp2", "zero2", "zero3"]


OffloadName = Literal["none", "optimizer", "all"]


SignalName = Literal["SIGUSR1", "SIGUSR2", "SIGHUP"]


SplitName = Literal["train_sft", "train_rl", "held_out"]


class Section(BaseModel):
    """Common rules: no unknown key, no silent conversion, no changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """The model, and where its video embeddings are stored."""

    folder: Path
    """Checkpoint folder in the Hugging Face layout."""
    store: Path = Path("embeddings")
    """Folder of the embedding store; share it between all stages of one model."""
    store_bytes: Annotated[int | None, Effect.NONE] = Field(default=None, ge=1)
    """Most bytes of the store's folder, no limit by default. What was used longest ago is removed first, and encoded
    again when it is needed. The folder should hold what `prefetch_steps` + 1 steps show.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the trainer; `auto` uses a GPU if there is one."""
    allow_pickle_weights: Annotated[bool, Effect.NONE] = False
    """Load weights from pickles (`pytorch_model.bin`) where a checkpoint has no safetensors. torch reads nothing but
    tensors from them; the sampler never takes them."""


class FrameSettings(Section):
    """How a video is sampled: how many frames, and how large they may be."""

    num_frames: int | None = Field(default=None, ge=1)
    """Frames per video, spread evenly; all frames of a shorter video."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second of video, spread evenly, instead of a fixed number."""
    min_frames: int | None = Field(default=None, ge=1)
    """With `fps`: minimum number of frames of a video, unless it has fewer."""
    max_frames: int | None = Field(default=None, ge=1)
    """With `fps`: maximum number of frames of a video."""
    frame_pixels: int | None = Field(default=None, ge=1)
    """Maximum pixels of a frame as the model sees it; by default the checkpoint's own limit. Ignored for models that
    accept one frame size only.
    """
    video_tokens: int | None = Field(default=None, ge=1)
    """Maximum embeddings of a whole video; frames are shrunk until they fit."""
    sound: bool = False
    """Films are heard too, by models that can, such as Qwen2.5-Omni; a film without a sound is then unusable, and its
    questions are dropped.
    """
    pictures: bool = True
    """Films are seen; without it they are only heard, as recordings are, which needs `sound`."""
    preset: PresetName | None = None
    """Values for those of these settings that aren't set: `checkpoint` for the values in the checkpoint's own files,
    `longvila_r1` and `longvila_r1_hour` for the paper's training settings.
    """

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.num_frames is not None:
            other = next((name for name in ("fps", "min_frames", "max_frames") if getattr(self, name)), None)
            if other is not None:
                raise ValueError(f"num_frames={self.num_frames} with {other}={getattr(self, other)}: set one of them")
        if self.min_frames is not None and self.max_frames is not None and self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames}: expected at most max_frames={self.max_frames}")
        if not self.pictures and not self.sound:
            raise ValueError("pictures=false with sound=false: nothing is left of a film; set sound to true, or blind")
        return self

    @property
    def counts_frames(self) -> bool:
        """Whether any setting determines the number of frames."""
        return self.num_frames is not None or self.fps is not None or self.preset is not None

    def or_frames(self, num_frames: int) -> Self:
        """The same settings, with this number of frames if none determines it."""
        return self if self.counts_frames else self.model_copy(update={"num_frames": num_frames})


class DataSection(FrameSettings):
    """The questions, and how their videos are sampled."""

    dataset: Annotated[Path, Effect.PLACE]
    """Dataset folder: `records.parquet` and the videos it refers to."""
    split: SplitName
    """The split of the dataset."""
    system: str | None = None
    """System message before the video; none by default."""
    follow_links: Annotated[bool, Effect.NONE] = False
    """Follow links in the dataset, which may lead anywhere; without it they are refused."""

    @model_validator(mode="after")
    def _counts_frames(self) -> Self:
        if not self.counts_frames:
            raise ValueError("num_frames is missing; set it, or fps, or a preset")
        return self


class SamplerSection(Section):
    """What generates the responses."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`vllm`, or a plain sampling loop where vLLM can't be installed."""
    memory_bytes: Annotated[int, Effect.NONE] = Field(default=512 * 1024**2, ge=1024**2)
    """vLLM's memory for keys and values."""
    max_num_seqs: Annotated[int, Effect.NONE] = Field(default=256, ge=1)
    """Responses that vLLM generates at the same time."""
    tensor_ranks: Annotated[int, Effect.NONE] = Field(default=1, ge=1)
    """Number of neighbouring processes that hold one copy of vLLM's model together; every copy gets its share of the
    prompts.
    """
    lora_sync: Annotated[Literal["merged", "adapter"] | None, Effect.NONE] = None
    """What vLLM gets after an update of adapters: all weights with the adapters `merged` into them, or the `adapter`
    alone. By default the adapter in bfloat16, since little of a young one is left in weights that are rounded so
    coarsely, and merged weights otherwise.
    """

    def takes_adapters(self, dtype: DtypeName) -> bool:
        """Whether adapters come alone, with weights of this dtype."""
        default = "adapter" if dtype == "bfloat16" else "merged"
        return self.engine == "vllm" and (self.lora_sync or default) == "adapter"


def _require_weights(rewards: object) -> object:
    for name, entry in rewards.items() if isinstance(rewards, dict) else ():
        if isinstance(entry, dict) and "weight" not in entry:
            raise ValueError(f"rewards.{name}.weight: missing; this setting has no default")
        weight = entry["weight"] if isinstance(entry, dict) else entry
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            where = f"rewards.{name}.weight" if isinstance(entry, dict) else f"rewards.{name}"
            raise ValueError(f"{where}: got {json.dumps(weight, default=str)}, expected: number")
    return rewards


RewardSettings = dict[str, bool | int | float | str]
"""A reward's weight and its own settings, which only the reward itself defines."""
_OPERATING = (
    "base_url patience_seconds timeout_seconds first_wait_seconds num_attempts num_parallel num_processes max_cost "
    "prompt_price completion_price"
)
OPERATING_SETTINGS = frozenset(_OPERATING.split())
"""Settings of rewards that say how something is reached or what it may cost, but nothing about values."""
RewardWeights = Annotated[
    dict[str, float | RewardSettings], BeforeValidator(_require_weights), WithoutEffect(OPERATING_SETTINGS)
]
"""The rewards by name: a weight, or a table."""


class LoraSection(Section):
    """Adapters (LoRA, arXiv 2106.09685) that are trained in place of the model's own weights, if a rank is set."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of the adapters; without it the model's own weights are trained."""
    alpha: int | None = Field(default=None, ge=1)
    """An adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that its adapter doesn't see, in sft and in the language model only."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Linear layers that get adapters, by the ends of their names, such as `q_proj` or `layers.0.mlp.up_proj`; by
    default all in the layers of the language model.
    """
    use_rslora: bool = False
    """Multiply by alpha / √rank instead (arXiv 2312.03732), so that larger ranks learn as fast as small ones."""
    vision: bool = False
    """Give the vision encoder adapters too; each video is then encoded once per step."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        fields = type(self).model_fields
        changed = next((name for name, field in fields.items() if getattr(self, name) != field.default), None)
        if self.rank is None and changed is not None:
            raise ValueError(f"lora.rank: missing; lora.{changed} has no meaning without it")
        if self.rank is not None and self.alpha is None:
            raise ValueError("lora.alpha: missing; set it to one or two times lora.rank, for example")
        return self


class ParallelSection(Section):
    """How the processes started by torchrun divide rows; what isn't set is chosen."""

    sequence_ranks: int | None = Field(default=None, ge=1)
    """Number of processes that share a row; the others compute other rows. By default the number with which the rows of
    the recipe are computed fastest and fit.
    """
    row_tokens: int | None = Field(default=None, ge=1)
    """Pack short prompts with their responses into rows of at most this many tokens; by default each has its own
    row.
    """
    head_ranks: int | None = Field(default=None, ge=1)
    """Number of processes that split the attention heads; the others split the tokens."""
    exchange: Literal["gather", "ring"] | None = None
    """How processes that split the tokens exchange keys and values."""
    exchange_patience_seconds: float = Field(default=1800.0, gt=0, le=1e6)
    """How long processes wait for each other in an exchange before the run ends and tells which of them hasn't come;
    longer than one of them saves a checkpoint, or generates longer responses than the others.
    """


class ShardingSection(Section):
    """How weights, gradients and optimizer state are kept by the processes started by torchrun."""

    kind: ShardingName | None = None
    """`none`: every process holds everything; `fsdp2`: every process holds a part, and layers are gathered while they
    are computed; `zero3`: the same by DeepSpeed; `zero2`: DeepSpeed, and every process holds all weights, but a part of
    their gradients and of the optimizer state. By default `fsdp2`. Of no effect on a single process.
    """
    offload: OffloadName = "none"
    """What is in host memory while it isn't computed with: the `optimizer` state, which DeepSpeed also updates there,
    or `all` that is sharded, weights too. `zero2` offers the first, `fsdp2` the second, `zero3` both.
    """
    shard_ranks: int | None = Field(default=None, ge=1)
    """Number of neighbouring processes that hold one copy together, such as those of a node, with copies elsewhere; by
    default all processes hold one.
    """


def records_path(data: DataSection) -> Path:
    """The file with the questions of a dataset; links in its folder are followed from now on if the settings say so."""
    if data.follow_links:
        follow_links(data.dataset)
    return data.dataset / "records.parquet"
