"""Shared by the engine's tests: one tiny checkpoint, an embedding store and a synthetic video."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

CORPUS = (
    "Which shape left first?",
    "The red circle met the blue square at 00:12.",
    "A. red\nB. blue\nC. green\nD. none",
)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices: passing work between threads costs more than the work, especially on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    create_tiny_qwen2_5_vl(
        folder, corpus=CORPUS, hidden_size=96, num_heads=3, num_key_value_heads=1, num_layers=2, intermediate_size=128
    )
    return folder


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings")


@pytest.fixture
def policy(tiny_folder: Path, store: EmbeddingStore) -> Policy:
    """The tiny checkpoint in float64 with a frozen tower."""
    policy = load_policy(tiny_folder, dtype=torch.float64, store=store)
    policy.freeze_vision()
    return policy


@pytest.fixture
def video() -> NoiseVideo:
    return NoiseVideo()


@pytest.fixture
def count_tokens() -> Callable[[Any], AbstractContextManager[list[int]]]:
    """Opens a list to which the number of tokens that an engine's vLLM computes is appended in each step."""

    @contextmanager
    def count(engine: Any) -> Iterator[list[int]]:
        counts: list[int] = []

        def hook(model: Any) -> Any:
            def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                positions = named["positions"] if "positions" in named else arguments[0]
                counts.append(positions.shape[-1])

            return model.language_model.model.layers[0].register_forward_pre_hook(note, with_kwargs=True)

        (handle,) = engine._llm.apply_model(hook)
        try:
            yield counts
        finally:
            handle.remove()

    return count
