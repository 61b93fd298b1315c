"""Real vLLM on both families: agreement with the trainer, before and after an update, with stored embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrl_omni.audio.audio_file import AudioFile
from longrl_omni.audio.tiny_tasks import make_tone, write_sound
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import gaps_around_an_update

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

SAMPLING = SamplingSettings(temperature=0.9, max_tokens=16, num_samples=4, seed=5)
Load = Callable[..., Any]


def check(folder: Path, policy: Any, prompts: list[Prompt]) -> None:
    engine = VllmRolloutEngine(folder, policy.store, max_model_len=256, memory_bytes=32 * 1024**2)
    try:
        before, stale, after = gaps_around_an_update(engine, policy, prompts, SAMPLING)
    finally:
        engine.close()
    assert before.mean() <= 1e-5
    assert stale.mean() > 1e-2
    assert after.mean() <= 1e-5


@pytest.mark.slow
def test_text(load: Load, text_folder: Path) -> None:
    policy = load(text_folder)
    check(text_folder, policy, [policy.build_prompt(text, ()) for text in ("What is 1 + 2?", "And 2 + 2?")])


@pytest.mark.slow
def test_audio(load: Load, audio_folder: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    policy = load(audio_folder)
    write_sound(tmp_path / "short.flac", [make_tone(300, 0.5)], codec="flac")
    write_sound(tmp_path / "long.flac", [make_tone(3000, 2.7)], codec="flac")
    media = [policy.encode_audio(AudioFile.open(tmp_path / f"{name}.flac")) for name in ("short", "long")]
    assert [len(of_file) for of_file in media] == [1, 2]
    check(audio_folder, policy, [policy.build_prompt("How high?", of_prompt) for of_prompt in ((), *media)])
    assert store.counters.encodes == 3
