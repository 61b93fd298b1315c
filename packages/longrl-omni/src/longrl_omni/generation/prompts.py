"""Prompts: one per line of a text file, and the order in which training takes them."""

import random
from collections.abc import Sequence
from pathlib import Path

from longrl_files.regular_files import read_bounded
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.seeds import derive_seed

MOST_BYTES = 2**28


def read_prompts(path: Path, setting: str) -> list[str]:
    """The prompts of a file: its lines without surrounding space; empty ones are left out.

    Raises:
        TrainerUsageError: There is no such file, it isn't UTF-8, or it has no prompt.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "there is no such file"
        raise TrainerUsageError(f"`{setting}` = {path}: {what}; expected one of text, with one prompt per line")
    try:
        text = read_bounded(path, error=TrainerUsageError, max_bytes=MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise TrainerUsageError(f"`{setting}` = {path}: not UTF-8 text ({error.reason})") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise TrainerUsageError(f"`{setting}` = {path}: has no prompt; expected one per line")
    return prompts


def prompts_of_step(prompts: Sequence[str], *, step: int, num_prompts: int, seed: int) -> list[str]:
    """The prompts of a step, counted from 0: each one once per epoch, in an order that is reshuffled for each."""
    chosen: list[str] = []
    for place in range(step * num_prompts, (step + 1) * num_prompts):
        epoch, position = divmod(place, len(prompts))
        order = list(range(len(prompts)))
        random.Random(derive_seed(seed, "prompts", epoch)).shuffle(order)
        chosen.append(prompts[order[position]])
    return chosen
