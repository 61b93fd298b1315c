"""What the loop needs of a model that generates by flow matching, whichever library it comes from.

A policy turns noise into latents by following a velocity, and latents into pictures or clips. Prompts are encoded once
each and the result is used by all samples and all passes. Noise levels go from 1 (noise) to 0 (clean); latents at level
s are (1 - s) clean + s noise, and the velocity is noise - clean. Latents, levels and velocities are float32, whatever
the dtype of the network.

Shape legend: B samples, L the shape of a sample's latents, F frames of a clip, 3 colour channels, H and W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.model_files import admit_pipeline
from longrl_omni.generation.prompts import read_prompts
from longrl_trainer.errors import TrainerError, TrainerUsageError

ENTRY_POINT_GROUP = "longrl_omni.generation.policies"
Encoding = Mapping[str, Tensor]
"""What a prompt has become: named tensors, of one prompt without and of B samples with a first axis."""


class GenerationPolicy(ABC):
    """A model in training.

    Attributes:
        transformer: The network that predicts velocities, and the only part that is trained; a list of several
            that each answer for some noise levels.
        frames_per_second: How fast clips are played; None for a model of pictures.
    """

    transformer: nn.Module
    frames_per_second: float | None = None
    has_guidance_input = False
    """Whether guidance is an input of the network, and needs no second pass with an empty prompt."""

    def __init__(self) -> None:
        self._encodings: dict[str, Encoding] = {}
        self.num_encoded = 0
        """How many prompts were encoded so far."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of a sample's latents, as the network takes them."""

    @abstractmethod
    def noise_levels(self, num_steps: int) -> tuple[float, ...]:
        """The published schedule for so many steps: num_steps + 1 levels that fall from at most 1 to 0."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Sequence[Encoding]:
        """Encode prompts, each by itself, so that a prompt's encoding doesn't depend on the others."""

    @abstractmethod
    def predict(self, latents_BL: Tensor, levels_B: Tensor, encoding: Encoding) -> Tensor:
        """The velocity [B, L] at latents that have these noise levels, in float32."""

    @abstractmethod
    def decode(self, latents_BL: Tensor) -> Tensor:
        """The pictures [B, 3, H, W] or clips [B, F, 3, H, W] of clean latents: from 0 to 1, float32, in host memory."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in the layout that it was loaded from."""

    @abstractmethod
    def save_adapters(self, folder: Path) -> None:
        """Write the adapters by themselves, before they are merged, as diffusers loads them."""

    def refusal_of(self, prompt: str) -> str | None:
        """Why the model can't be asked for this; None if it can. A model of free text takes any prompt."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.transformer.parameters()).device

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """The encodings of prompts as a batch; each prompt is encoded the first time only."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encodings]
        if missing:
            with torch.no_grad():
                self._encodings |= zip(missing, self.encode_prompts(missing), strict=True)
            self.num_encoded += len(missing)
        encodings = [self._encodings[prompt] for prompt in prompts]
        return {name: torch.stack([encoding[name] for encoding in encodings]) for name in encodings[0]}


class GenerationFamily(Protocol):
    """What the entry points of the group `longrl_omni.generation.policies` name, by the class of a pipeline."""

    def load(
        self, folder: Path, *, dtype: torch.dtype, device: torch.device, settings: SamplingSection
    ) -> GenerationPolicy:
        """Load a model from a folder in float32 or bfloat16.

        Raises:
            TrainerError: The folder doesn't hold one, or not one for these sizes.
        """
        ...


def load_generation_policy(
    folder: Path, *, dtype: torch.dtype, device: torch.device, settings: SamplingSection
) -> GenerationPolicy:
    """Load a model with the family that its `model_index.json` names.

    Args:
        folder: The model.
        dtype: Of the network's weights.
        device: Where it computes.
        settings: How it will be sampled: sizes and guidance.

    Raises:
        TrainerUsageError: There is no model, or no family for it.
    """
    name = admit_pipeline(folder).get("_class_name")
    known = {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
    if not isinstance(name, str) or name not in known:
        raise TrainerUsageError(
            f"`model.folder` = {folder}: the model is a {visible(str(name), 60)}, expected one of "
            f"{', '.join(sorted(known))}"
        )
    try:
        family: GenerationFamily = known[name].load()()
        return family.load(folder, dtype=dtype, device=device, settings=settings)
    except ImportError as error:
        raise TrainerError(f"{name} needs {error.name}: install longrl-omni[generation]") from error


def read_prompts_for(policy: GenerationPolicy, path: Path, setting: str) -> list[str]:
    """The prompts of a file, of which the model can be asked every one; a wrong one is found before the first is drawn.

    Raises:
        TrainerUsageError: It can't, or the file can't be read, or has none.
    """
    prompts = read_prompts(path, setting)
    for prompt in dict.fromkeys(prompts):
        if refusal := policy.refusal_of(prompt):
            raise TrainerUsageError(f"`{setting}` = {path}: {refusal}")
    return prompts
