"""The ways in which every question of a benchmark is asked: the mode, the number of frames, with subtitles or without.

A protocol determines the prompt's text and how many frames are shown; nothing here reads a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from longrl_trainer.config.benchmarks import BenchmarkConfig, ModeName
from longvideo_reason_data.benchmarks.questions import BenchmarkQuestion
from longvideo_reason_data.media.subtitles.cues import Cue
from longvideo_reason_data.records.answers import LETTERS, format_prompt

SUBTITLES_INTRODUCTION = "This video's subtitles are listed below:"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingProtocol:
    """One way of asking.

    Attributes:
        mode: Whether to answer directly, or to think first, or to answer without the video.
        num_frames: Frames shown; 0 without the video.
        subtitles: Whether what is said at the shown frames precedes the question.
    """

    mode: ModeName
    num_frames: int
    subtitles: bool = False

    @property
    def name(self) -> str:
        """Such as `thinking/64/subtitles`, or `blind`."""
        parts = (self.mode, str(self.num_frames) if self.num_frames else "", "subtitles" if self.subtitles else "")
        return "/".join(filter(None, parts))


def list_protocols(config: BenchmarkConfig) -> tuple[AskingProtocol, ...]:
    """All protocols of a run; blind ones have neither frames nor subtitles, so there is one."""
    told = {"without": (False,), "with": (True,), "both": (False, True)}[config.subtitles]
    protocols = [
        AskingProtocol(mode=mode, num_frames=num_frames, subtitles=subtitles)
        for num_frames in config.frames
        for subtitles in told
        for mode in config.modes
        if mode != "blind"
    ]
    return (*protocols, *(AskingProtocol(mode=mode, num_frames=0) for mode in config.modes if mode == "blind"))


def rotated(options: Sequence[str], rotation: int) -> tuple[str, ...]:
    """The options, beginning with the one at a place."""
    return (*options[rotation:], *options[:rotation])


def shown_letter(letter: str, rotation: int, num_options: int) -> str:
    """The letter that a published letter has among rotated options."""
    return LETTERS[(LETTERS.index(letter) - rotation) % num_options]


def published_letter(letter: str, rotation: int, num_options: int) -> str:
    """The published letter of a letter among rotated options."""
    return LETTERS[(LETTERS.index(letter) + rotation) % num_options]


def count_rotations(question: BenchmarkQuestion, config: BenchmarkConfig) -> int:
    """How often a question is asked under each protocol."""
    return max(1, len(question.options)) if config.rotate_options else 1


def write_text(
    question: BenchmarkQuestion,
    protocol: AskingProtocol,
    config: BenchmarkConfig,
    *,
    rotation: int = 0,
    spoken: Sequence[Cue] = (),
) -> str:
    """The text of a prompt: subtitles if there are any, the question, its options, the instruction."""
    if protocol.mode == "thinking":
        instruction = config.thinking_instruction
    else:
        instruction = config.direct_instruction if question.options else config.open_instruction
    parts = [format_prompt(question.question, rotated(question.options, rotation)), instruction]
    if spoken:
        parts.insert(0, "\n".join([SUBTITLES_INTRODUCTION, *(cue.text for cue in spoken)]))
    return "\n".join(filter(None, parts))


def spoken_at(cues: Sequence[Cue], seconds: Sequence[float], *, start_seconds: float = 0.0) -> list[Cue]:
    """The subtitles that are shown at some of these times, in their order.

    Args:
        cues: Those of the video.
        seconds: Times of the frames.
        start_seconds: Time in the subtitles at which the video begins.
    """
    times = [time + start_seconds for time in seconds]
    return [cue for cue in cues if any(cue.start_seconds <= time < cue.end_seconds for time in times)]
