"""The captions of a world: some to learn from, and others that no drawing or sample of training ever shows."""

import random
from pathlib import Path

from pydantic import Field

from longrl_omni.generation.pictures.captions import PictureCaption, draw_caption
from longrl_trainer.config.sections import Section
from longrl_trainer.durable import write_text
from longrl_trainer.seeds import derive_seed

PROMPTS_NAME, HELD_OUT_NAME = "prompts.txt", "held_out_prompts.txt"


class PictureCaptionSettings(Section):
    """How many captions there are, and how crowded they may be."""

    train_captions: int = Field(default=300, ge=1)
    """Different captions for reinforcement learning."""
    held_out_captions: int = Field(default=48, ge=1)
    """Different captions that are only evaluated on."""
    most_things: int = Field(default=3, ge=1, le=3)
    """Largest number of things of a kind."""


def choose_captions(
    settings: PictureCaptionSettings, *, seed: int
) -> tuple[list[PictureCaption], list[PictureCaption]]:
    """Captions to train on and captions to hold out, all different.

    Raises:
        ValueError: There aren't so many.
    """
    wanted = settings.train_captions + settings.held_out_captions
    source = random.Random(derive_seed(seed, "captions"))
    chosen: dict[PictureCaption, None] = {}
    for _ in range(100 * wanted):
        chosen[draw_caption(source, most_things=settings.most_things)] = None
        if len(chosen) == wanted:
            captions = list(chosen)
            return captions[settings.held_out_captions :], captions[: settings.held_out_captions]
    raise ValueError(
        f"{wanted} different captions of up to {settings.most_things} things of a kind: there are only {len(chosen)}"
    )


def write_captions(folder: Path, captions: list[PictureCaption], held_out: list[PictureCaption]) -> None:
    """Write both as prompts, one per line."""
    for name, chosen in ((PROMPTS_NAME, captions), (HELD_OUT_NAME, held_out)):
        write_text(folder / name, "".join(f"{caption.text}\n" for caption in chosen))
