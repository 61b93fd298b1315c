"""Sections that the recipes of several stages have in common: model, data, sampler, ranks.

Every setting's docstring is its help text.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from longrl_trainer.config.effects import Effect

AdvantageName = Literal["grpo", "dr_grpo", "rloo"]


AggregationName = Literal["token", "sequence", "constant"]


ObjectiveName = Literal["clipped"]


OptimizerName = Literal["adamw", "muon"]


DtypeName = Literal["float32", "bfloat16", "float64"]


VisionName = Literal["frozen", "projector", "all"]


StoredName = Literal["embeddings", "frames", "smaller"]


SplitName = Literal["train_sft", "train_rl", "held_out"]


RewardEntry = float | dict[str, JsonValue]
"""A reward's weight, or a table with `weight` and what the reward itself can be set to."""


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


class DataSection(Section):
    """Which questions, and how their videos are looked at."""

    dataset: Annotated[Path, Effect.PLACE]
    """Dataset folder: `records.parquet` and the videos it names."""
    split: SplitName
    """Which of the dataset's splits."""
    num_frames: int = Field(ge=1)
    """Frames per video, spread evenly; a shorter video gives all it has."""
    system: str | None = None
    """System message in front of the video; none unless set."""


class SamplerSection(Section):
    """Who writes the responses."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """`vllm`, or a plain sampling loop where vLLM can't be installed."""
    memory_bytes: Annotated[int, Effect.NONE] = Field(default=512 * 1024**2, ge=1024**2)
    """vLLM's memory for keys and values."""
    max_num_seqs: Annotated[int, Effect.NONE] = Field(default=256, ge=1)
    """Responses that vLLM writes at the same time."""


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
