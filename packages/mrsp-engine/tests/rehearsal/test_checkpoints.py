"""Folders without weights: models of every kind are built from them at the published sizes."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.checkpoints import without_weights
from mrsp_engine.planner.checkpoints import find_shape, read_shape
from mrsp_engine.rehearsal.checkpoints import write_without_weights
from mrsp_engine.rehearsal.recorder import StepRecorder
from mrsp_engine.testing.fixtures import NoiseVideo


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *("Qwen2-VL-2B", "Qwen2.5-VL-7B", "Qwen3-VL-8B", "Qwen2.5-7B", "Qwen3-1.7B", "LongVILA-R1-7B"),
        *("NVILA-Lite-8B", "NVILA-8B-Video", "Qwen2.5-Omni-7B"),
    ],
)
def test_a_model_without_weights_has_the_published_sizes(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_without_weights(model, folder, num_layers=1)
    assert not list(folder.rglob("*.safetensors*"))
    shape, published = read_shape(folder), find_shape(model)
    assert (shape.layer_weights, shape.head_weights) == (published.layer_weights, published.head_weights)
    fakes = FakeTensorMode()
    with StepRecorder(fakes), without_weights(lambda: fakes):
        policy = load_policy(folder, dtype=torch.bfloat16, store=EmbeddingStore(tmp_path / "store"))
    assert policy.max_positions == published.max_positions
    head = policy.language_model_head.get_parameter("weight")
    assert head.shape == (shape.vocab_size, shape.hidden_size)
    layer = policy.decoder.get_submodule("layers").get_submodule("0")
    assert sum(weight.numel() for weight in layer.parameters() if weight.dim() > 1) == shape.layer_weights
    if published.vision is None:
        assert policy.encoder is None
        return
    assert policy.encoder is not None
    plan = policy.encoder.plan(NoiseVideo(frame_count=32), range(32))
    edge = published.vision.fixed_size
    assert edge is None or (plan.layout.height, plan.layout.width) == (edge, edge)
