"""Teaches the tiny model to draw captions, by flow matching on drawings that are made as they are needed.

The loss is the mean squared error of the velocity (Flow Matching, arXiv 2210.02747). Noise levels are even and then
shifted like those of the sampler: flat things can be seen through much noise, and only beyond that is the caption
needed. No caption that is held out is ever drawn for it.
"""

import random
from collections.abc import Collection

import torch
from pydantic import Field
from torch import nn

from longrl_omni.generation.pictures.captions import NUMBER_WORDS, PictureCaption, draw_caption
from longrl_omni.generation.pictures.drawing import draw
from longrl_omni.generation.pictures.model import LEVEL_SHIFT, PicturesPolicy, encode_pictures, number_words
from longrl_omni.generation.policies.schedules import shift_level
from longrl_trainer.config.sections import OptimizerName, Section
from longrl_trainer.runs.progress import ProgressDisplay, SilentProgress
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.optimizer import Optimizer, cosine_learning_rate


class PretrainingSettings(Section):
    """How the tiny model learns to draw."""

    steps: int = Field(default=700, ge=1)
    """Optimizer steps."""
    pictures_per_step: int = Field(default=48, ge=1)
    """New drawings per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate."""
    optimizer: OptimizerName = "muon"
    """`muon` learns a tiny model several times faster than `adamw`."""


def pretrain(
    policy: PicturesPolicy,
    settings: PretrainingSettings,
    *,
    seed: int,
    most_things: int = len(NUMBER_WORDS),
    held_out: Collection[PictureCaption] = (),
    progress: ProgressDisplay | None = None,
) -> list[float]:
    """Train all weights in place; returns the loss of every step.

    Args:
        policy: The model.
        settings: How it learns.
        seed: Determines captions, drawings and noise.
        most_things: Largest number of things of a kind.
        held_out: Captions that are never drawn.
        progress: Where to show progress.
    """
    model = nn.ModuleDict({"transformer": policy.transformer, "encoder": policy.encoder}).train()
    optimizer = Optimizer(model, weight_decay=0.0, max_gradient_norm=1.0, name=settings.optimizer)
    source = random.Random(derive_seed(seed, "pretraining"))
    noise = torch.Generator().manual_seed(derive_seed(seed, "pretraining noise"))
    losses: list[float] = []
    with (progress or SilentProgress()).task("pretraining", total=settings.steps) as bar:
        for step in range(settings.steps):
            captions: list[PictureCaption] = []
            while len(captions) < settings.pictures_per_step:
                caption = draw_caption(source, most_things=most_things)
                if caption not in held_out:
                    captions.append(caption)
            clean_BL = encode_pictures(torch.stack([draw(caption, source) for caption in captions]))
            noise_BL = torch.randn(clean_BL.shape, generator=noise)
            levels_B = shift_level(torch.rand(len(captions), generator=noise), shift=LEVEL_SHIFT)
            mixed_BL = torch.lerp(clean_BL, noise_BL, levels_B[:, None, None, None])
            words_BWD, pooled_BP = policy.encoder(number_words([caption.text for caption in captions]))
            velocities_BL = policy.predict(mixed_BL, levels_B, {"words": words_BWD, "pooled": pooled_BP})
            loss = (velocities_BL - (noise_BL - clean_BL)).square().mean()
            loss.backward()
            optimizer.step(
                cosine_learning_rate(
                    step,
                    num_steps=settings.steps,
                    peak=settings.learning_rate,
                    warmup_steps=max(1, settings.steps // 20),
                    min_learning_rate_fraction=0.05,
                )
            )
            losses.append(loss.item())
            bar.advance(note=f"loss {losses[-1]:.3f}")
    model.eval()
    return losses
