"""The plan of a build, and the digests that determine whether a result of an earlier build is still valid."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.prompts.templates import Prompts

STAGES = ("videos", "segments", "questions")


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything except the videos that affects the records; it can be sent to other processes.

    Attributes:
        settings: The settings.
        prompts: The prompts.
        model: Name of the reasoner.
        captioner: Name of the model that sees the frames.
    """

    settings: BuildSettings
    prompts: Prompts
    model: str
    captioner: str

    @cached_property
    def config_digests(self) -> dict[str, str]:
        """SHA-256 of what affects each stage; a later one covers the earlier ones."""
        settings = self.settings
        cutting = settings.scenes.model_dump(mode="json") if settings.segments == "scenes" else settings.window_seconds
        videos = {"decoder": settings.decoder, settings.segments: cutting}
        segments = {
            "videos": videos,
            "captions": settings.captions.model_dump(mode="json"),
            "captioner": self.captioner,
            "prompt": self.prompts.digest_of("caption"),
        }
        questions = {
            "segments": segments,
            "questions": settings.questions.model_dump(mode="json"),
            "model": self.model,
            "prompts": self.prompts.digest_of(),
        }
        return {stage: digest_json(value) for stage, value in zip(STAGES, (videos, segments, questions), strict=True)}


def digest_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
