"""Sections that the recipes of several stages have in common: model, data, sampler, ranks.

Every setting's docstring is its help text.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longrl_trainer.config.effects import Effect

AdvantageName = Literal["grpo", "dr_grpo", "rloo"]


AggregationName = Literal["token", "sequence", "constant"]


OptimizerName = Literal["adamw", "muon"]


DtypeName = Literal["float32", "bfloat16", "float64"]


VisionName = Literal["frozen", "projector", "all"]


StoredName = Literal["embeddings", "frames", "smaller"]


PresetName = Literal["checkpoint", "longvila_r1", "longvila_r1_hour"]


SplitName = Literal["train_sft", "train_rl", "held_out"]


class Section(BaseModel):
    """Common rules: no unknown key, no silent conversion, no change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """Which model, and where its video embeddings are kept."""

    folder: Path
    """Checkpoint folder in the Hugging Face layout."""
    store: Path = Path("embeddings")
    """Folder of the embedding store; share it between all stages of one model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the trainer computes; `auto` takes a GPU if there is one."""
    allow_pickle_weights: Annotated[bool, Effect.NONE] = False
    """Load weights from pickles (`pytorch_model.bin`) where a checkpoint has no safetensors. torch reads nothing but
    tensors from them; the sampler never takes them."""


class FrameSettings(Section):
    """How a video is looked at: how many of its frames, and how large they may be."""

    num_frames: int | None = Field(default=None, ge=1)
    """Frames per video, spread evenly; a shorter video gives all it has."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second of video, spread evenly, in place of a fixed number."""
    min_frames: int | None = Field(default=None, ge=1)
    """With `fps`: no fewer of a short video, unless it has fewer."""
    max_frames: int | None = Field(default=None, ge=1)
    """With `fps`: no more of a long video."""
    frame_pixels: int | None = Field(default=None, ge=1)
    """Most pixels of a frame as the model sees it; the checkpoint's own limit unless set. Without meaning for models
    that take frames of one size."""
    video_tokens: int | None = Field(default=None, ge=1)
    """Most embeddings of a whole video; frames shrink until they keep to it."""
    preset: PresetName | None = None
    """Values for all of this that isn't set: `checkpoint` for what the checkpoint's own files say, `longvila_r1` and
    `longvila_r1_hour` for what the paper trained with."""

    @model_validator(mode="after")
    def _counts_frames_one_way(self) -> Self:
        if self.num_frames is not None:
            other = next((name for name in ("fps", "min_frames", "max_frames") if getattr(self, name)), None)
            if other is not None:
                raise ValueError(f"num_frames={self.num_frames} with {other}={getattr(self, other)}: set one of them")
        if self.min_frames is not None and self.max_frames is not None and self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames}: expected at most max_frames={self.max_frames}")
        return self

    @property
    def counts_frames(self) -> bool:
        """Whether anything says how many frames."""
        return self.num_frames is not None or self.fps is not None or self.preset is not None

    def or_frames(self, num_frames: int) -> Self:
        """The same settings, with so many frames if nothing says how many."""
        return self if self.counts_frames else self.model_copy(update={"num_frames": num_frames})


class DataSection(FrameSettings):
    """Which questions, and how their videos are looked at."""

    dataset: Annotated[Path, Effect.PLACE]
    """Dataset folder: `records.parquet` and the videos it names."""
    split: SplitName
    """Which of the dataset's splits."""
    system: str | None = None
    """System message in front of the video; none unless set."""

    @model_validator(mode="after")
    def _counts_frames(self) -> Self:
        if not self.counts_frames:
            raise ValueError("num_frames is missing; set it, or fps, or a preset")
        return self


class SamplerSection(Section):
    """Who writes the responses."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`vllm`, or a plain sampling loop where vLLM can't be installed."""
    memory_bytes: Annotated[int, Effect.NONE] = Field(default=512 * 1024**2, ge=1024**2)
    """vLLM's memory for keys and values."""
    max_num_seqs: Annotated[int, Effect.NONE] = Field(default=256, ge=1)
    """Responses that vLLM writes at the same time."""


RewardSettings = dict[str, bool | int | float | str]
"""A reward's weight and its own settings, which only the reward itself knows."""


class ParallelSection(Section):
    """How the processes that torchrun starts divide a row; what isn't set is chosen for every row."""

    row_tokens: int | None = Field(default=None, ge=1)
    """Put short prompts with their responses together into rows of at most this many tokens; each has its own row
    unless set."""
    head_ranks: int | None = Field(default=None, ge=1)
    """Processes that split the attention heads among themselves; the others split the tokens."""
    exchange: Literal["gather", "ring"] | None = None
    """How processes that split the tokens get each other's keys and values."""


def records_path(data: DataSection) -> Path:
    """Where a dataset folder keeps its questions."""
    return data.dataset / "records.parquet"
