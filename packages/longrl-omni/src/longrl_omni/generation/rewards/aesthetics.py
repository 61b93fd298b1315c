"""How much people would like a picture, whatever its prompt: a head of linear layers on CLIP's embedding of it.

The head that LAION published for CLIP ViT-L/14 (its "improved aesthetic predictor") is five linear layers without
anything between them, whose output is a mark around 1 to 10. It is published as a pickle, which isn't read here: save
its `state_dict` with safetensors first.

Shape legend: B pictures, D width of CLIP's embeddings.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from longrl_omni.generation.model_parts import WEIGHTS
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.clip import ClipScorer, ClipSettings
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from mrsp_engine.families.checkpoint_folder import CheckpointFolder

NAME = "aesthetics"
Layers = list[tuple[Tensor, Tensor]]
"""Weights and biases, in the order in which they are applied."""


class AestheticsSettings(ClipSettings):
    """Which model and which head."""

    head: Path
    """File of the head in safetensors, with the names of its layers: `layers.0.weight`, `layers.0.bias`, …"""


class AestheticsReward:
    """The mark that the head gives a picture."""

    Settings = AestheticsSettings

    def __init__(self, settings: AestheticsSettings) -> None:
        self._scorer = ClipScorer(settings, NAME)
        self._layers = read_head(settings.head, width=self._scorer.width)

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        marks_BD = self._scorer.embed_pictures([request.picture for request in requests])
        for weight, bias in self._layers:
            marks_BD = functional.linear(marks_BD, weight, bias)
        return [RewardResult(value=mark, status=RewardStatus.OK) for mark in marks_BD[:, 0].tolist()]


def read_head(path: Path, *, width: int) -> Layers:
    """The linear layers of a head.

    Args:
        path: Its file.
        width: D, which the first layer takes.

    Raises:
        TrainerUsageError: There is no such file, or its layers don't lead from D numbers to one.
        EngineUsageError: It is cut short, or no file of tensors.
    """
    refusal = f"`rewards.{NAME}.head` = {path}: "
    if path.suffix != WEIGHTS or not path.is_file():
        raise TrainerUsageError(f"{refusal}expected a file *{WEIGHTS}; save the head's `state_dict` with safetensors")
    CheckpointFolder(path.parent).count_in(path.name)
    tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
    numbers = sorted(int(found[1]) for name in tensors if (found := re.fullmatch(r"layers\.(\d{1,4})\.weight", name)))
    expected = width
    layers: Layers = []
    for number in numbers:
        weight, bias = tensors[f"layers.{number}.weight"], tensors.get(f"layers.{number}.bias")
        if bias is None or weight.dim() != 2 or weight.shape[1] != expected or bias.shape != weight.shape[:1]:
            raise TrainerUsageError(
                f"{refusal}layer {number} has weights {tuple(weight.shape)} and biases "
                f"{None if bias is None else tuple(bias.shape)}, expected ones that take {expected} numbers"
            )
        layers.append((weight, bias))
        expected = weight.shape[0]
    if not layers or expected != 1 or len(tensors) != 2 * len(layers):
        raise TrainerUsageError(
            f"{refusal}has {len(tensors)} tensors in {len(layers)} layers that end with {expected} numbers; expected "
            "`layers.N.weight` and `layers.N.bias` only, which end with one"
        )
    return layers
