"""How well a picture can be compressed: a reward that needs no model, from DDPO (arXiv 2305.13301), section 5.1."""

import io
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from longrl_omni.generation.rewards.base import PictureRequest
from longrl_trainer.rewards.base import RewardResult, RewardStatus


class JpegSizeReward:
    """Minus the size of a picture as JPEG, in units of its raw size: larger for simpler pictures."""

    class Settings(BaseModel):
        """Its settings."""

        model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)

        quality: int = Field(default=95, ge=1, le=100)
        """Quality of the JPEG file."""

    def __init__(self, settings: Settings) -> None:
        self._quality = settings.quality

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        return [RewardResult(value=self._score(request.picture), status=RewardStatus.OK) for request in requests]

    def _score(self, picture_3HW: Tensor) -> float:
        from PIL import Image

        pixels_HW3 = as_bytes(picture_3HW)
        file = io.BytesIO()
        Image.fromarray(pixels_HW3.numpy()).save(file, format="JPEG", quality=self._quality)
        return -file.tell() / pixels_HW3.numel()


def as_bytes(picture_3HW: Tensor) -> Tensor:
    """A picture with values from 0 to 1 as [H, W, 3] of bytes."""
    return (picture_3HW.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous()
