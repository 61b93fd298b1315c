"""The tiny checkpoints: reproducible to the byte, an informative tower, and clear refusals."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longrl_omni.audio.audio_file import AudioFile
from longrl_omni.audio.tiny_model import AudioSizes
from longrl_omni.audio.tiny_tasks import make_tone, write_sound
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.tiny.language import LanguageSizes, create_tiny_qwen2

SCRIPT = """
import sys
from pathlib import Path
from longrl_omni.audio.tiny_model import AudioSizes, create_tiny_qwen2_audio
from mrsp_engine.tiny.language import LanguageSizes, create_tiny_qwen2
sizes = LanguageSizes(hidden_size=32, num_layers=1, num_heads=1, num_key_value_heads=1, vocabulary_size=300)
create_tiny_qwen2(Path(sys.argv[1]) / "text", corpus=["a tone"], seed=3, sizes=sizes)
audio = AudioSizes(hidden_size=32, num_layers=1, num_heads=1, num_mel_bins=40, window_seconds=1)
create_tiny_qwen2_audio(Path(sys.argv[1]) / "audio", corpus=["a tone"], seed=3, sizes=sizes, audio=audio)
"""


@pytest.mark.slow
def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    contents: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / name)], check=True, timeout=240)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert {"text/model.safetensors", "audio/model.safetensors"} < contents[0].keys()


@pytest.mark.slow
def test_the_tower_tells_pitches_apart(
    audio_folder: Path, store: EmbeddingStore, load: Callable[..., Any], tmp_path: Path
) -> None:
    """A linear reading of the random tower's tokens finds the pitch of tones it wasn't fit to."""
    policy = load(audio_folder)
    generator = np.random.default_rng(0)
    features, pitches = [], []
    for index in range(48):
        octave = float(generator.uniform(0, 5))
        path = tmp_path / f"{index}.wav"
        write_sound(path, [make_tone(150 * 2**octave, 0.3, seed=index)])
        tokens = store.get(policy.encode_audio(AudioFile.open(path))[0].key)
        features.append(tokens.double().mean(0))
        pitches.append(octave)
    rows = torch.cat([torch.stack(features), torch.ones(48, 1, dtype=torch.float64)], dim=1)
    assert 0.2 < rows[:, :-1].pow(2).mean().sqrt() < 5
    wanted = torch.tensor(pitches, dtype=torch.float64)
    gram = rows[:36] @ rows[:36].T + 0.01 * torch.eye(36, dtype=torch.float64)
    weights = rows[:36].T @ torch.linalg.solve(gram, wanted[:36])
    errors = rows[36:] @ weights - wanted[36:]
    assert errors.pow(2).mean().sqrt() < 0.7  # guessing the middle gives about 1.44


def test_impossible_sizes_and_full_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineUsageError, match="head size"):
        LanguageSizes(hidden_size=64, num_heads=4)
    with pytest.raises(EngineUsageError, match="num_key_value_heads"):
        LanguageSizes(num_key_value_heads=4)
    with pytest.raises(EngineUsageError, match="audio tower"):
        AudioSizes(hidden_size=65)
    with pytest.raises(EngineUsageError, match="window_seconds"):
        AudioSizes(window_seconds=0)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(EngineUsageError, match="not an empty folder"):
        create_tiny_qwen2(tmp_path, corpus=["a"])
