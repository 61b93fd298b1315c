"""Which steps of the sampler have noise, and which of them are trained, in a step of training.

The choice depends on seed and step alone and is made once for all groups of a step: with another choice for each sample
of a group, they would differ by their steps too, and not only by chance.
"""

import random
from dataclasses import dataclass

from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_trainer.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyWindow:
    """The steps of a sampler, by their places in its schedule.

    Attributes:
        noisy_steps: Those with noise.
        trained_steps: Those of them that are trained.
    """

    noisy_steps: tuple[int, ...]
    trained_steps: tuple[int, ...]


def choose_window(config: GenerateGrpoConfig, step: int) -> NoisyWindow:
    """The choice for a step of training, counted from 0; the sampler's last step is never chosen."""
    if not config.is_reverse:
        return NoisyWindow(noisy_steps=(), trained_steps=())
    source = random.Random(derive_seed(config.seed, "window", step))
    most = config.sampling.steps - 1
    places = most - config.window_steps + 1
    match config.parts.window:
        case "all":
            noisy = range(most)
        case "progressive":
            first = step // config.window_patience % places
            noisy = range(first, first + config.window_steps)
        case "random":
            first = source.randrange(places)
            noisy = range(first, first + config.window_steps)
    num_trained = max(1, round(config.trained_share * len(noisy)))
    return NoisyWindow(noisy_steps=tuple(noisy), trained_steps=tuple(sorted(source.sample(noisy, num_trained))))
