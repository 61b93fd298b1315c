"""Requests for vLLM: names that cover everything, no embedding where the store is read, one refusal per sample."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import Refusal, RefusalReason, SamplingSettings
from mrsp_engine.rollout.vllm.embedding_connector import medium_name
from mrsp_engine.rollout.vllm.requests import RequestWriter, SamplerCheckpoint
from mrsp_engine.testing.fixtures import NoiseVideo

SAMPLING = SamplingSettings(temperature=1.0, max_tokens=8)


@pytest.fixture
def medium(policy: Policy, video: NoiseVideo) -> MediaReference:
    return policy.encode_video(video, range(8))


@pytest.fixture
def prompt(policy: Policy, medium: MediaReference) -> Prompt:
    return policy.build_prompt("Which shape left first?", [medium])


class Counted:
    """The policy's store, counting how often it is asked."""

    def __init__(self, policy: Policy) -> None:
        self.folder = policy.store.folder
        self.own: dict[str, Tensor | None] = {}
        self._store = policy.store

    def get(self, key: str, /) -> Tensor | None:
        return self.own[key] if key in self.own else self._store.get(key)


@pytest.fixture
def source(policy: Policy) -> Counted:
    return Counted(policy)


def writer(
    folder: Path, source: Counted, *, is_reading_store: bool = True, max_model_len: int = 200, max_positions: int = 200
) -> RequestWriter:
    return RequestWriter(
        SamplerCheckpoint(folder),
        source,
        max_model_len=max_model_len,
        max_positions=max_positions,
        dtype=torch.float32,
        is_reading_store=is_reading_store,
    )


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in tensors(item)]


def test_a_request_that_reads_the_store_carries_no_embedding(
    tiny_folder: Path, source: Counted, prompt: Prompt, medium: MediaReference
) -> None:
    by_name = writer(tiny_folder, source).write(prompt, SAMPLING)
    whole = writer(tiny_folder, source, is_reading_store=False).write(prompt, SAMPLING)
    assert isinstance(by_name, dict)
    assert isinstance(whole, dict)
    assert sum(tensor.numel() for tensor in tensors(by_name)) == 4  # a grid and its timing
    assert sum(tensor.numel() for tensor in tensors(whole)) == 4 + medium.num_tokens * 96
    assert by_name["multi_modal_uuids"] == whole["multi_modal_uuids"] == {"video": [medium_name(medium)]}


def test_a_name_covers_everything_a_reference_holds(medium: MediaReference) -> None:
    others = [
        dataclasses.replace(medium, key="0" * 64),
        dataclasses.replace(medium, grid_thw=(medium.grid_thw[0], medium.grid_thw[2], medium.grid_thw[1])),
        dataclasses.replace(medium, seconds_per_grid=medium.seconds_per_grid * (1 + 2**-50)),
        dataclasses.replace(medium, num_tokens=medium.num_tokens + 1),
    ]
    assert {field.name for field in dataclasses.fields(medium)} >= {"key", "grid_thw", "seconds_per_grid", "num_tokens"}
    assert len({medium_name(other) for other in [medium, *others]}) == 5
    assert medium_name(dataclasses.replace(medium)) == medium_name(medium)


def test_every_fault_of_a_sample_refuses_that_sample(
    tiny_folder: Path, source: Counted, prompt: Prompt, medium: MediaReference
) -> None:
    rows, width = medium.num_tokens, 96
    source.own = {
        "missing": None,
        "wide": torch.zeros(rows, width * 2),
        "short": torch.zeros(rows - 1, width),
        "nan": torch.full((rows, width), float("nan")),
    }
    expected = {
        "missing": str(source.folder),
        "wide": f"expected ({rows}, {width})",
        "short": f"expected ({rows}, {width})",
        "nan": "finite",
    }
    for key, words in expected.items():
        media = (dataclasses.replace(medium, key=key),)
        refusal = writer(tiny_folder, source).write(dataclasses.replace(prompt, media=media), SAMPLING)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == RefusalReason.EMBEDDING_UNUSABLE
        assert words in refusal.message
        assert "\n" not in refusal.message
    fits = writer(tiny_folder, source, max_model_len=prompt.length + 8).write(prompt, SAMPLING)
    assert isinstance(fits, dict)
    refusal = writer(tiny_folder, source, max_model_len=prompt.length + 7).write(prompt, SAMPLING)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == RefusalReason.PROMPT_TOO_LONG
    assert "raise max_model_len" in refusal.message
    positions = int(prompt.positions.max()) + 1
    assert positions < prompt.length
    assert isinstance(writer(tiny_folder, source, max_positions=positions + 8).write(prompt, SAMPLING), dict)
    refusal = writer(tiny_folder, source, max_positions=positions + 7).write(prompt, SAMPLING)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == RefusalReason.PROMPT_TOO_LONG
    assert f"{positions} positions" in refusal.message


def test_a_prompt_of_another_checkpoint_is_a_mistake(tiny_folder: Path, source: Counted, prompt: Prompt) -> None:
    none: tuple[MediaReference, ...] = ()
    with pytest.raises(EngineUsageError, match="placeholder"):
        writer(tiny_folder, source).write(dataclasses.replace(prompt, media=none), SAMPLING)
    with pytest.raises(EngineUsageError, match="placeholder"):
        writer(tiny_folder, source).write(dataclasses.replace(prompt, media=prompt.media * 2), SAMPLING)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineUsageError, match=r"config\.json"):
        SamplerCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EngineUsageError, match=r"config\.json"):
        SamplerCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    with pytest.raises(EngineUsageError, match="eos_token_id"):
        SamplerCheckpoint(tmp_path)
