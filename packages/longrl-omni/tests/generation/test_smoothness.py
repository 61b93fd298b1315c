"""The smoothness of clips, by numbers."""

import pytest
import torch

from longrl_omni.generation.rewards.base import ClipRequest
from longrl_omni.generation.rewards.judging import judge_samples, load_generation_rewards
from longrl_omni.generation.rewards.smoothness import measure_smoothness
from longrl_trainer.errors import TrainerUsageError


def test_a_clip_that_stands_or_changes_evenly_is_smooth() -> None:
    still = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).expand(5, 3, 4, 4)
    fading = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 4, 4)
    assert measure_smoothness(still) == pytest.approx(1.0)
    assert measure_smoothness(fading) == pytest.approx(1.0)


def test_one_flash_by_hand() -> None:
    """Of five frames the third is white: the inner ones differ from their neighbours' mean by 1/2, 1 and 1/2."""
    clip = torch.zeros(5, 3, 4, 4)
    clip[2] = 1.0
    assert measure_smoothness(clip) == pytest.approx(1.0 - (0.5 + 1.0 + 0.5) / 3)


def test_what_flickers_is_less_smooth_than_what_moves_and_dirt_costs() -> None:
    moving, jumping = torch.zeros(9, 3, 16, 16), torch.zeros(9, 3, 16, 16)
    for frame in range(9):
        moving[frame, :, 4:8, frame : frame + 4] = 1.0
        jumping[frame, :, 4:8, 5 * frame % 12 : 5 * frame % 12 + 4] = 1.0
    dirty = (moving + 0.1 * torch.rand(moving.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    requests = [ClipRequest(prompt="", clip=clip, frames_per_second=8.0) for clip in (moving, dirty, jumping)]
    judged = judge_samples(load_generation_rewards({"smoothness": 1.0}), requests)
    smooth, with_dirt, with_jumps = (value or 0.0 for value in judged.values("smoothness"))
    assert with_jumps < with_dirt < smooth < 1.0


def test_two_frames_are_too_few() -> None:
    with pytest.raises(TrainerUsageError, match="a clip has 2 frames, expected at least 3"):
        measure_smoothness(torch.zeros(2, 3, 4, 4))
