"""How the trainer handles a question's file if it is heard.

Each class or function is an entry point in the group `longrl_trainer.media`, under the name of the family for such
files. The trainer opens the file with it, compares its digest with the record's, and gets references to embeddings.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from longrl_omni.audio.audio_file import AudioFile, has_pictures
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.questions.media import Medium, VideoMedium
from longvideo_reason_data.errors import DataError
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.audio import AudioSource
from mrsp_engine.encoding.parallel import PlannedMedium
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.qwen.qwen2_5_omni import Qwen25OmniPolicy

__all__ = ["AudioClip", "Film", "HearingPolicy", "open_film_or_recording"]


@runtime_checkable
class HearingPolicy(Protocol):
    """What a recording needs of a policy whose family hears."""

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode_audio` expects."""
        ...

    @property
    def least_samples(self) -> int:
        """Minimum number of samples for `encode_audio`."""
        ...

    def encode_audio(self, audio: AudioSource, /) -> tuple[MediaReference, ...]:
        """Return references to a recording, encoding only what the store does not hold yet."""
        ...


@dataclass(frozen=True, kw_only=True)
class AudioClip:
    """A complete recording."""

    audio: AudioFile
    policy: HearingPolicy

    @classmethod
    def open(cls, path: Path, policy: Policy) -> Self:
        """Probe a recording (or the audio of a video) at the policy's sample rate.

        Raises:
            DataError: It can't be read, or is too short for the tower.
            EngineUsageError: The policy doesn't support audio.
        """
        if not isinstance(policy, HearingPolicy):
            raise EngineUsageError(f"a model of type {policy.name} accepts no audio; set another model folder")
        audio = AudioFile.open(path, sample_rate=policy.sample_rate)
        if audio.num_samples < policy.least_samples:
            raise DataError(f"{path}: {audio.num_samples} samples are too short; expected {policy.least_samples}")
        return cls(audio=audio, policy=policy)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return self.audio.content_digest

    def encode(self, frames: FrameSettings) -> tuple[MediaReference, ...]:
        """Return references to all of it; `num_frames` applies to videos only."""
        return self.policy.encode_audio(self.audio)


@dataclass(frozen=True, kw_only=True)
class Film:
    """A video for a model that may hear it, too."""

    seen: VideoMedium
    policy: Qwen25OmniPolicy

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return self.seen.content_digest

    def encode(self, frames: FrameSettings) -> tuple[MediaReference | PlannedMedium, ...]:
        """Its frames, and its sound behind them where the settings want it (`sound`), or its sound alone.

        Raises:
            DataError: It should be heard and has no sound, or one that can't be read.
            UnfitMediumError: The model can't accept its frames or its sound.
        """
        seen_only = frames.model_copy(update={"sound": False, "pictures": True})
        shown = self.seen.encode(seen_only) if frames.pictures else ()
        if not frames.sound:
            return shown
        try:
            clip = AudioClip.open(self.seen.video.path, self.policy)
        except DataError as error:
            raise DataError(f"{error} (it is to be heard; set data.sound to false to have it seen only)") from error
        return (*shown, self.policy.encode_film_sound(clip.audio)) if frames.pictures else clip.encode(frames)


def open_film_or_recording(path: Path, policy: Policy) -> Medium:
    """Probe a file for a model that sees and hears: one with pictures as a film, another one as a recording.

    Raises:
        DataError: It can't be read.
    """
    if isinstance(policy, Qwen25OmniPolicy) and has_pictures(path):
        return Film(seen=VideoMedium.open(path, policy), policy=policy)
    return AudioClip.open(path, policy)
