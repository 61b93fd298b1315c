"""The sound of a world: a tone for every scene, made block by block.

Pitches lie far apart, so that a few mel bands tell them from each other. As the light fades in the pictures, a faint
whistle swells, so that every moment of the sound tells its time. Nothing here writes files.

Shape legend: N samples of a block.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from longvideo_reason_data.timeline.world import Scene, World

__all__ = ["FREQUENCIES", "SAMPLE_RATE", "render_tones"]

SAMPLE_RATE = 16_000
"""Samples per second."""
FREQUENCIES = {"deep": 200.0, "middle": 600.0, "high": 1800.0, "shrill": 5400.0}
"""Names of pitches and their frequencies in hertz."""
LOUDNESS = 0.4
WHISTLE_FREQUENCY = 3200.0
WHISTLE_BEGINNING, WHISTLE_END = 0.002, 0.06
"""How loud the whistle is first and last; in between it swells by the same factor in every second."""
FADE_SECONDS = 0.02  # without it a tone begins and ends with a click of all frequencies


def render_tones(world: World, block_samples: int) -> Iterator[NDArray[np.float32]]:
    """All samples in order, float32 [N] from -1 to 1; the last block may be shorter."""
    num_samples = round(world.settings.seconds * SAMPLE_RATE)
    for start in range(0, num_samples, block_samples):
        yield _render_block(world, start, min(start + block_samples, num_samples))


def _render_block(world: World, start: int, end: int) -> NDArray[np.float32]:
    time_N = np.arange(start, end) / SAMPLE_RATE
    swell_N = (WHISTLE_END / WHISTLE_BEGINNING) ** (time_N / world.settings.seconds)
    block_N = WHISTLE_BEGINNING * swell_N * np.sin(2 * np.pi * WHISTLE_FREQUENCY * time_N)
    for scene, pitch in zip(world.scenes, world.pitches, strict=True):
        if scene.start_seconds < end / SAMPLE_RATE and start / SAMPLE_RATE < scene.end_seconds:
            block_N += _loudness(scene, time_N) * np.sin(2 * np.pi * FREQUENCIES[pitch] * time_N)
    return block_N.astype(np.float32)


def _loudness(scene: Scene, time_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """How loud a scene's tone is at the given times: [N]."""
    inside_N = np.minimum(time_N - scene.start_seconds, scene.end_seconds - time_N)
    return LOUDNESS * np.clip(inside_N / FADE_SECONDS, 0.0, 1.0)
