"""The audio tower of a thinker that can learn: random and frozen, and yet tones are far apart in its rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.qwen.qwen2_5_omni import Qwen25OmniPolicy
from mrsp_engine.testing.fixtures import NoiseSound
from mrsp_engine.tiny.language import LanguageSizes
from mrsp_engine.tiny.published.qwen2_5_omni import ThinkerTowers
from mrsp_engine.tiny.qwen2_5_omni import create_trainable_qwen2_5_omni

RATE = 16_000
PITCHES = (200.0, 600.0, 1800.0, 5400.0)
SIZES = LanguageSizes(
    hidden_size=64, num_layers=2, num_heads=2, num_key_value_heads=1, intermediate_size=128, vocabulary_size=512
)


def create(folder: Path, seed: int = 0) -> Path:
    towers = ThinkerTowers(vision_hidden_size=32, vision_depth=1, audio_hidden_size=32, audio_depth=1)
    create_trainable_qwen2_5_omni(folder, corpus=["Which tone sounds?"], sizes=SIZES, towers=towers, seed=seed)
    return folder


def rows_of_tones(policy: Qwen25OmniPolicy, phase: float) -> list[torch.Tensor]:
    """Rows of every pitch, [N, D] each, of one sound in which every one sounds for two seconds."""
    time: NDArray[np.float64] = np.arange(2 * RATE) / RATE
    sound = NoiseSound(num_samples=len(PITCHES) * len(time))
    sound.samples = np.concatenate([0.4 * np.sin(2 * np.pi * pitch * time + phase) for pitch in PITCHES])
    sound.samples = sound.samples.astype(np.float32)
    sound.content_digest = f"{phase:064.0f}"
    (reference,) = policy.encode_audio(sound)
    rows = policy.store.get(reference.key)
    assert rows is not None
    return list(rows.chunk(len(PITCHES)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_tones_are_far_apart_and_the_moments_of_one_are_close(seed: int, tmp_path: Path) -> None:
    policy = load_policy(create(tmp_path / "model", seed), store=EmbeddingStore(tmp_path / "store"))
    assert isinstance(policy, Qwen25OmniPolicy)
    first, second = rows_of_tones(policy, 0.0), rows_of_tones(policy, 1.0)
    centres = torch.stack([rows[5:-5].mean(0) for rows in first])
    for number, rows in enumerate(second):
        distances = torch.cdist(rows[5:-5], centres)
        assert (distances.argmin(1) == number).all()
        others = distances[:, [place for place in range(len(PITCHES)) if place != number]]
        assert others.min() > 1.5 * distances[:, number].max()
