"""Shared by the tests: a tiny checkpoint and a tiny dataset of either family, and a way to load the checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longrl_omni.audio.qwen2_audio import Qwen2AudioFamily
from longrl_omni.audio.tiny_model import AudioSizes, create_tiny_qwen2_audio
from longrl_omni.audio.tiny_tasks import corpus_of, write_sum_questions, write_tone_questions
from longvideo_reason_data.records.record import read_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.families.qwen.text import Qwen2Family
from mrsp_engine.tiny.language import LanguageSizes, create_tiny_qwen2

SIZES = LanguageSizes(
    hidden_size=64, num_layers=2, num_heads=2, num_key_value_heads=1, intermediate_size=128, vocabulary_size=512
)
AUDIO_SIZES = AudioSizes(hidden_size=64, num_layers=1, num_heads=2, num_mel_bins=40, window_seconds=2)
Load = Callable[..., LanguagePolicy]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices: passing work between threads costs more than the work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sums")
    write_sum_questions(folder)
    return folder


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    write_tone_questions(folder)
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory, sums: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "text"
    create_tiny_qwen2(folder, corpus=corpus_of(read_records(sums / "records.parquet")), sizes=SIZES)
    return folder


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory: pytest.TempPathFactory, tones: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "audio"
    corpus = corpus_of(read_records(tones / "records.parquet"))
    create_tiny_qwen2_audio(folder, corpus=corpus, sizes=SIZES, audio=AUDIO_SIZES)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings")


@pytest.fixture
def load(store: EmbeddingStore) -> Load:
    """Loads a checkpoint of either family with a frozen encoder."""

    def load_with_store(
        folder: Path, dtype: torch.dtype = torch.float32, store: EmbeddingStore = store
    ) -> LanguagePolicy:
        family = Qwen2AudioFamily() if (folder / "processor_config.json").exists() else Qwen2Family()
        policy = family.load_policy(folder, dtype=dtype, store=store, device=torch.device("cpu"))
        policy.freeze_vision()
        return policy

    return load_with_store
