"""The exact number of tokens of a video in a prompt: by the families' own arithmetic, before anything is loaded.

The tokens around embeddings (markers, times, line breaks) are counted with the checkpoint's tokenizer where its folder
has a `tokenizer.json`, and by the rules of Qwen's tokenizer otherwise.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longrl_files.messages import visible
from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import MOST_VOCABULARY_BYTES, CheckpointFolder
from mrsp_engine.families.qwen.frame_sizes import QwenFrames, middle_seconds, seconds_per_group, write_time
from mrsp_engine.families.vila.frame_sizes import VilaFrames

__all__ = ["PlannedVideo", "QwenVideos", "VideoRule", "VideoTokens", "VilaVideos", "count_as_qwen", "token_counter"]

CountTokens = Callable[[str], int]

_QWEN_TOKENS = re.compile(r"\d| ?[^\W\d]+|[^\w\s]+|\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVideo:
    """A video in a prompt.

    Attributes:
        height: Rows of its frames.
        width: Their columns.
        seconds: Times of the frames.
        budget: Limits on their size.
    """

    height: int
    width: int
    seconds: tuple[float, ...]
    budget: FrameBudget = UNLIMITED


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTokens:
    """The size of a video in a prompt.

    Attributes:
        frame_pixels: Pixels of a frame as the encoder sees it.
        embeddings: Rows of its embedding.
        tokens: Those, and the tokens that the family writes around them.
        positions: Positions that all of these take.
    """

    frame_pixels: int
    embeddings: int
    tokens: int
    positions: int


class VideoRule(Protocol):
    """How a family counts tokens."""

    def count(self, video: PlannedVideo) -> VideoTokens:
        """Count a video's tokens.

        Raises:
            UnfitMediumError: The model can't accept it, or not within the budget.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVideos:
    """Qwen2.5-VL puts markers around a video, Qwen3-VL a time and markers around every group of frames.

    Attributes:
        frames: Sizes of frames.
        writes_times: Whether times are written as text.
        positions_per_second: By which positions count time; None if they count groups of frames.
        count_tokens: The tokenizer.
    """

    frames: QwenFrames
    writes_times: bool
    positions_per_second: float | None = None
    count_tokens: CountTokens

    def count(self, video: PlannedVideo) -> VideoTokens:
        """See `VideoRule.count`."""
        num_frames = len(video.seconds)
        height, width = self.frames.size(video.height, video.width, num_frames, video.budget)
        embeddings = self.frames.num_tokens(height, width, num_frames)
        side = max(height, width) // self.frames.factor
        if self.writes_times:
            times = middle_seconds(video.seconds, self.frames.frames_per_group)
            written = sum(2 + self.count_tokens(write_time(seconds)) for seconds in times)
            extent = side * len(times)
        else:
            written, groups = 2, self.frames.num_groups(num_frames)
            step = 1.0
            if self.positions_per_second is not None:
                step = seconds_per_group(video.seconds, self.frames.frames_per_group) * self.positions_per_second
            extent = max(int((groups - 1) * step) + 1, side)
        return VideoTokens(
            frame_pixels=height * width,
            embeddings=embeddings,
            tokens=embeddings + written,
            positions=extent + written,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VilaVideos:
    """VILA puts texts around every frame, and its frames have one size."""

    frames: VilaFrames
    edge: int
    count_tokens: CountTokens

    def count(self, video: PlannedVideo) -> VideoTokens:
        """See `VideoRule.count`."""
        shown, rows, columns = self.frames.grid(len(video.seconds), video.budget)
        syntax = self.frames.syntax
        written = shown * (self.count_tokens(syntax.start) + self.count_tokens(syntax.end))
        embeddings = shown * rows * columns
        tokens = embeddings + written
        return VideoTokens(frame_pixels=self.edge**2, embeddings=embeddings, tokens=tokens, positions=tokens)


def count_as_qwen(text: str) -> int:
    """Number of tokens of a short text for Qwen's tokenizer: one per digit, word or run of punctuation."""
    return len(_QWEN_TOKENS.findall(text))


def token_counter(folder: Path) -> CountTokens:
    """Return the function that counts the tokens of a text for the checkpoint in a folder."""
    checkpoint = CheckpointFolder(folder)
    if not checkpoint.files.has("tokenizer.json"):
        return count_as_qwen
    from tokenizers import Tokenizer

    content = checkpoint.files.read_bytes("tokenizer.json", max_bytes=MOST_VOCABULARY_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no other kind
        raise EngineUsageError(
            f"{folder / 'tokenizer.json'}: not a tokenizer ({visible(str(error))}); set another model folder"
        ) from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
