"""How the trainer handles a question's file if it is audio.

Each class is an entry point in the group `longrl_trainer.media`, under the name of the family for such files. The
trainer opens the file with it, compares its digest with the record's, and gets references to embeddings from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from longrl_omni.audio.audio_file import AudioFile
from longrl_omni.audio.qwen2_audio import Qwen2AudioPolicy
from longrl_trainer.config.sections import FrameSettings
from longvideo_reason_data.errors import DataError
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.base import Policy


@dataclass(frozen=True, kw_only=True)
class AudioClip:
    """A complete recording: one medium per window of the audio tower."""

    audio: AudioFile
    policy: Qwen2AudioPolicy

    @classmethod
    def open(cls, path: Path, policy: Policy) -> Self:
        """Probe a recording (or the audio of a video) at the policy's sample rate.

        Raises:
            DataError: It can't be read, or is too short for the tower.
            EngineUsageError: The policy doesn't support audio.
        """
        if not isinstance(policy, Qwen2AudioPolicy):
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
