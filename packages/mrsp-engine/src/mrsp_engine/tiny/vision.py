"""Calibrating a randomly initialised vision tower.

Only the last two layers of a Qwen2.5-VL tower are set, from videos like those it will see or from images drawn here; it
then stays frozen.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Qwen2VLVideoProcessor

__all__ = ["calibrate_vision", "make_vision_matter", "patches_of_pictures", "patches_of_videos", "whiten"]


WHITENING_FLOOR = 1e-3  # directions weaker than this share of the strongest are noise and stay small


@torch.no_grad()
def calibrate_vision(tower: nn.Module, scale: float, patches_SP: Tensor, grid_thw: Tensor) -> None:
    """Centre, whiten and scale the tower's output over the given patches [S, P] and their grids [N, 3].

    Fresh weights give nearly identical tokens: the mean of all images dominates, then overall brightness, and what
    distinguishes two objects is a hundredth of that. Removing the mean and scaling every direction to the same size
    makes all of it visible to the language model.
    """
    merger = cast(Any, tower).merger
    for linear in (merger.mlp[0], merger.mlp[2]):
        nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
    whiten(merger.mlp[2], scale, cast(Any, tower)(patches_SP, grid_thw=grid_thw).pooler_output)


@torch.no_grad()
def whiten(last: nn.Linear, scale: float, tokens_SD: Tensor) -> None:
    """Change a tower's last layer so that these tokens of it are centred, white and of the given size."""
    tokens_SD = tokens_SD.double()
    mean_D = tokens_SD.mean(dim=0)
    centred_SD = tokens_SD - mean_D
    variances_D, directions_DD = torch.linalg.eigh(centred_SD.T @ centred_SD / len(centred_SD))
    floor = WHITENING_FLOOR * variances_D.max()
    whiten_DD = directions_DD @ torch.diag((variances_D.clamp(min=0.0) + floor).rsqrt()) @ directions_DD.T
    whiten_DD *= scale / (centred_SD @ whiten_DD).pow(2).mean().sqrt()
    last.weight.copy_(whiten_DD.T @ last.weight.double())
    last.bias.copy_((last.bias.double() - mean_D) @ whiten_DD)


def patches_of_videos(processor: Qwen2VLVideoProcessor, videos: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Patches [S, P] and grids [N, 3] of videos, each uint8 [F, H, W, 3], by the checkpoint's own processor."""
    inputs = processor(
        videos=[torch.from_numpy(video) for video in videos], do_sample_frames=False, return_tensors="pt"
    )
    return inputs["pixel_values_videos"], inputs["video_grid_thw"]


def patches_of_pictures(
    config: Any, *, num_pictures: int = 256, num_patches_per_side: int = 8
) -> tuple[Tensor, Tensor]:
    """Images of coloured rectangles as patches [S, channels × time × height × width], and their grids [N, 3]."""
    patch_size, merge_size = int(config.patch_size), int(config.spatial_merge_size)
    side = num_patches_per_side * patch_size
    pictures = torch.rand(num_pictures, 3, 1, 1).mul(0.5).repeat(1, 1, side, side)
    for picture in pictures:
        for _ in range(6):
            top, left = (int(edge) for edge in torch.randint(0, side - patch_size, (2,)))
            height, width = (int(edge) for edge in torch.randint(patch_size // 2, side // 2, (2,)))
            picture[:, top : top + height, left : left + width] = torch.rand(3, 1, 1)
    mean, deviation = Qwen2VLVideoProcessor.image_mean, Qwen2VLVideoProcessor.image_std
    pictures = (pictures - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    half = num_patches_per_side // merge_size
    patches = pictures.view(num_pictures, 3, half, merge_size, patch_size, half, merge_size, patch_size)
    patches = (
        patches.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).repeat(1, 1, 1, 1, 1, 1, config.temporal_patch_size, 1, 1)
    )
    grid_thw = torch.tensor([[1, num_patches_per_side, num_patches_per_side]] * num_pictures)
    return patches.reshape(num_pictures * num_patches_per_side**2, -1), grid_thw


@torch.no_grad()
def make_vision_matter(modules: Iterable[nn.Module]) -> None:
    """Give the last layers weights of ordinary size; fresh ones pass on hardly anything of an image."""
    for module in modules:
        for linear in (part for part in module.modules() if isinstance(part, nn.Linear)):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
