"""The settings of an evaluation on a published benchmark.

Like those of the stages (`longrl_trainer.config.stages`); one run asks every question under several protocols. These
may be added to a run later, or left out; other changes make it another run.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from longrl_trainer.config.effects import Effect
from longrl_trainer.config.sections import DtypeName, ModelSection, SamplerSection, Section
from longrl_trainer.rewards.judge_settings import JudgeLimits, JudgeSettings
from longvideo_reason_data.benchmarks.layouts import find_layout
from longvideo_reason_data.errors import UsageError

ModeName = Literal["direct", "thinking", "blind"]
SubtitlesName = Literal["without", "with", "both"]

DIRECT_INSTRUCTION = "Answer with the letter of the right option only."
OPEN_INSTRUCTION = "Answer with a single word or a short phrase."
THINKING_INSTRUCTION = (
    "First think about the question, then answer it. Write your reasoning between <think> and </think>, and the answer "
    "between <answer> and </answer>; if there are options, the answer is the letter of the right one."
)


class JudgeSection(JudgeLimits):
    """Which language model says whether answers to open questions are right, if one is to."""

    base_url: str | None = None
    """Address of the judge's server up to and including `/v1`; its key is read from OPENAI_API_KEY. Without one, open
    answers are right if they have the words of the right one.
    """
    model: str | None = None
    """Name of the judge on the server."""

    @model_validator(mode="after")
    def _names_all_of_it(self) -> Self:
        if (self.base_url is None) != (self.model is None):
            lacking = "model" if self.model is None else "base_url"
            raise ValueError(f"judge.{lacking} is missing; set it too, or omit the judge")
        limits = JudgeLimits.model_fields
        limit = next((name for name, field in limits.items() if getattr(self, name) != field.default), None)
        if self.base_url is None and limit is not None:
            raise ValueError(
                f"judge.{limit}={getattr(self, limit)} without a judge; set judge.base_url and judge.model, or omit it"
            )
        return self

    @property
    def settings(self) -> JudgeSettings | None:
        """The judge; None if there is none."""
        return None if self.base_url is None else JudgeSettings.model_validate(self.model_dump())


class BenchmarkConfig(Section):
    """Scores on a published benchmark, asked in several ways."""

    model: Annotated[ModelSection, Effect.PLACE]
    step: Annotated[int | Literal["best"] | None, Effect.PLACE] = None
    """Evaluate a checkpoint of a run of training, whose folder is then `model.folder`: the one after so many steps, or
    the `best`. Its model is exported into a folder beside the output meanwhile.
    """
    benchmark: str
    """Name of the benchmark, such as videomme; or questions, for any table (Parquet, JSON, JSON lines, CSV or TSV) with
    a column `video` or `video_path`, one `question`, `problem` or `query`, and one `answer` or `solution`: a text, the
    letter of an option or its index. Options may be in a column `options`, in columns of their own, or in the question.
    """
    path: Annotated[Path, Effect.PLACE]
    """Folder of the benchmark: its tables, videos and subtitles, as they were published."""
    table: str | None = None
    """The table inside the folder, if it hasn't the published name."""
    output: Annotated[Path, Effect.PLACE]
    """Folder of this run: responses, scores, and the report."""
    frames: Annotated[tuple[int, ...], Effect.LENGTH] = Field(default=(64,), min_length=1)
    """Frames per video, spread evenly, one or several numbers; each video is encoded once for each."""
    frame_pixels: int | None = Field(default=None, ge=1)
    """Maximum pixels of a frame as the model sees it; by default the checkpoint's own limit."""
    video_tokens: int | None = Field(default=None, ge=1)
    """Maximum embeddings of a whole video; frames are shrunk until they fit."""
    modes: Annotated[tuple[ModeName, ...], Effect.LENGTH] = Field(default=("direct", "thinking", "blind"), min_length=1)
    """How questions are asked: answered at once, after thinking, or at once without the video."""
    subtitles: Annotated[SubtitlesName, Effect.LENGTH] = "without"
    """Whether the subtitles at the shown frames precede the question, if the benchmark has any."""
    rotate_options: bool = False
    """Ask each question as often as it has options, with another one first each time."""
    direct_instruction: str = DIRECT_INSTRUCTION
    """What follows the options when there is nothing to think; nothing if empty."""
    open_instruction: str = OPEN_INSTRUCTION
    """What follows a question without options then."""
    thinking_instruction: str = THINKING_INSTRUCTION
    """What follows a question that is to be thought about; empty for a model that always does."""
    system: str | None = None
    """System message before the video; none by default."""
    direct_tokens: int = Field(default=64, ge=1)
    """Maximum tokens of a direct response; a longer one is cut off."""
    thinking_tokens: int = Field(default=4096, ge=1)
    """Maximum tokens of a response with thinking."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 selects the most probable token."""
    limit: int | None = Field(default=None, ge=1)
    """Ask at most this many questions, spread evenly over the benchmark."""
    judge: Annotated[JudgeSection, Effect.LENGTH] = JudgeSection()
    seed: int = Field(default=0, ge=0)
    """Determines the sampled tokens when the temperature is not 0."""
    dtype: DtypeName = "float32"
    """Dtype of the model's weights."""
    follow_links: Annotated[bool, Effect.NONE] = False
    """Follow links in the benchmark's folder, which may lead anywhere; without it they are refused."""
    sampler: SamplerSection = SamplerSection()

    @field_validator("benchmark")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            find_layout(value)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        few = next((number for number in self.frames if number < 1), None)
        if few is not None:
            raise ValueError(f"frames={few}: expected 1 or more")
        for name in ("frames", "modes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={' '.join(map(str, values))}: expected each once")
        return self
