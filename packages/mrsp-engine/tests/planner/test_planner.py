"""The planner: figures computed by hand, monotonicity, and refusals."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.attention.split import RowSplit
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import FrameBudget
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.planner.checkpoints import find_shape, read_shape
from mrsp_engine.planner.costs import (
    OTHER_TOKENS,
    Sizes,
    embedding_bytes,
    exchanged_bytes,
    forward_operations,
    key_value_bytes,
    predict_stages,
)
from mrsp_engine.planner.hardware import find_accelerator, recognise_accelerator
from mrsp_engine.planner.memory import Strategy, activation_bytes, memory_by_part
from mrsp_engine.planner.published import MODELS
from mrsp_engine.planner.search import PlanRequest, StepPlan, plan_step
from mrsp_engine.planner.shapes import LinearShape
from mrsp_engine.planner.videos import PlannedVideo
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

SEVEN = MODELS["Qwen2.5-VL-7B"]
HEADLESS = AttentionHeads(query=0, key=0, channels=128)
HOUR = PlanRequest(shape=SEVEN, hardware=find_accelerator("A100"), num_devices=8, memory_bytes=80e9, num_frames=3600)


def total(plan: StepPlan) -> float:
    return sum(plan.seconds_by_stage.values())


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen2.5-VL-3B", 3.09),
        ("Qwen2.5-VL-7B", 7.62),
        ("Qwen2.5-VL-32B", 32.8),
        ("Qwen2.5-VL-72B", 72.7),
        ("Qwen3-VL-2B", 1.72),
        ("Qwen3-VL-4B", 4.02),
        ("Qwen3-VL-8B", 8.19),
        ("Qwen3-VL-32B", 32.8),
        ("Qwen3.5-27B", 26.9),
        ("Qwen2.5-0.5B", 0.494),
    ],
)
def test_known_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    assert MODELS[name].num_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_frames_make_the_tokens_the_models_make() -> None:
    vision = SEVEN.vision
    assert vision is not None
    assert vision.num_groups(3600) * vision.tokens_per_group(128 * 28 * 28) == 1800 * 128
    vila, lite = MODELS["LongVILA-R1-7B"].vision, MODELS["NVILA-Lite-8B"].vision
    assert vila is not None
    assert lite is not None
    assert (vila.tokens_per_group(0), lite.tokens_per_group(0)) == (257, 122)


def test_operations_of_a_row() -> None:
    row = PackedLayout((GroupLengths(100, (10, 10)),))
    linear, attention = forward_operations(SEVEN, row, 20)
    per_layer = 3584 * (28 * 128) * 2 + 3584 * (4 * 128) * 2 + 3 * 3584 * 18944
    assert linear == 2 * 28 * per_layer * 120 + 2 * 152064 * 3584 * 20
    assert attention == 4 * 28 * 28 * 128 * (100 * 101 // 2 + 20 * 100 + 2 * 10 * 11 // 2)


class TestLinearLayers:
    HYBRID = replace(
        SEVEN,
        is_gated=True,
        linear=LinearShape(num_layers=21, key_heads=16, value_heads=32, key_channels=128, value_channels=64),
    )

    def test_a_folder_has_the_weights_of_its_model(self, tmp_path: Path) -> None:
        build_tiny("qwen3_5", tmp_path / "model")
        shape = read_shape(tmp_path / "model")
        policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
        matrices = [weight.numel() for weight in policy.decoder.parameters() if weight.dim() == 2]
        assert shape.num_parameters == sum(matrices)
        assert shape.linear is not None
        assert (shape.linear.num_layers, shape.num_attention_layers) == (2, 1)
        layers = [
            module for module in policy.decoder.get_submodule("layers").modules() if isinstance(module, nn.Linear)
        ]
        widths = sum(layer.in_features + layer.out_features for layer in layers)
        assert replace(shape, lora_rank=4).num_adapter_parameters == 4 * widths
        assert policy.key_value_bytes / 4 == key_value_bytes(shape, 1) / 2  # float32, bfloat16

    def test_operations_grow_with_tokens_rather_than_with_pairs(self) -> None:
        short, long = (PackedLayout((GroupLengths(length, (10, 10)),)) for length in (80, 180))
        layers = (forward_operations(replace(self.HYBRID, heads=HEADLESS), row, 0)[1] for row in (short, long))
        per_token = 21 * 32 * (64 * (4 * 128 + 128 + 64 + 2 * 64) + 6 * 128 * 64)
        assert list(layers) == [100 * per_token, 200 * per_token]

    def test_keys_values_and_bytes_exchanged(self) -> None:
        assert key_value_bytes(self.HYBRID, 1000) == 1000 * 2 * 4 * 128 * 7 * 2
        assert self.HYBRID.linear.state_bytes == 21 * 32 * 128 * 64 * 4
        split, row = RowSplit(head_ranks=1, token_ranks=4, exchange="gather"), PackedLayout((GroupLengths(1600, ()),))
        attention = exchanged_bytes(SEVEN, row, split)[0] * 7 / 28
        states = 21 * 400 * (2 * 16 * 128 + 2 * 32 * 64 + 2 * 32) * 2 * 3 / 4
        assert exchanged_bytes(self.HYBRID, row, split)[0] == attention + states

    def test_they_take_part_in_a_plan(self) -> None:
        with_states, without = (plan_step(replace(HOUR, shape=shape, kl="reward")) for shape in (self.HYBRID, SEVEN))
        assert with_states.seconds_by_stage["old"] < without.seconds_by_stage["old"]
        few, many = (
            activation_bytes(replace(self.HYBRID, linear=linear), 1000, Strategy())
            for linear in (self.HYBRID.linear, replace(self.HYBRID.linear, value_heads=64))
        )
        assert many - few == 1000 * 21 * 32 * (2 * 64 + 2 * 128 + 4 * 64) * 2


def test_bytes_of_keys_and_values_and_of_embeddings() -> None:
    sizes = Sizes.of(SEVEN, num_frames=3600, frame_pixels=128 * 28 * 28, group_size=8, response_tokens=1024)
    assert key_value_bytes(SEVEN, 256_000) == 256_000 * 2 * 4 * 128 * 28 * 2  # 14.7 GB
    assert embedding_bytes(SEVEN, sizes) == 230_400 * 3584 * 2
    deep = MODELS["Qwen3-VL-8B"]
    of_deep = Sizes.of(deep, num_frames=2, frame_pixels=32 * 32 * 10, group_size=1, response_tokens=1)
    assert embedding_bytes(deep, of_deep) == 10 * 4096 * 4 * 2


def test_bytes_exchanged() -> None:
    row = PackedLayout((GroupLengths(1600, ()),))
    by_heads = exchanged_bytes(SEVEN, row, RowSplit(head_ranks=4, token_ranks=1, exchange="gather"))
    assert by_heads == (400 * (2 * 28 + 2 * 4) * 128 * 2 * 3 / 4 * 28,) * 2
    forward, backward = exchanged_bytes(SEVEN, row, RowSplit(head_ranks=1, token_ranks=8, exchange="ring"))
    assert forward == 7 * 200 * 2 * 4 * 128 * 2 * 28
    assert backward == forward + 8 * 200 * 2 * 4 * 128 * 4 * 28
    assert exchanged_bytes(SEVEN, row, RowSplit(head_ranks=1, token_ranks=1, exchange="gather")) == (0.0, 0.0)


def test_sharing_the_prompt_gains_what_theory_says() -> None:
    sizes = Sizes(num_frames=0, frame_pixels=1, group_size=8, response_tokens=1024, prompt_tokens=1 << 16)
    seconds = {
        mode: predict_stages(SEVEN, sizes, HOUR.hardware, num_ranks=1, mode=mode, is_checkpointed=True)
        for mode in ("cached", "shared")
    }
    stages = ("old", "reference", "update")
    ratio = sum(seconds["cached"][s] for s in stages) / sum(seconds["shared"][s] for s in stages)
    assert ratio == pytest.approx(6.9, abs=0.2)


def test_memory_by_part() -> None:
    sizes = Sizes.of(SEVEN, num_frames=512, frame_pixels=128 * 28 * 28, group_size=8, response_tokens=1024)
    _, row = sizes.rows("shared")
    parts = memory_by_part(
        SEVEN,
        sizes,
        row,
        rows_tokens=row.total,
        sequence_ranks=8,
        all_ranks=8,
        strategy=Strategy(sharding="optimizer"),
    )
    # The gradients of all weights, and the head's, of which three copies are added up.
    assert parts["gradients"] == 2 * (SEVEN.num_parameters + 3 * SEVEN.head_weights)
    assert parts["optimizer"] == 12 * SEVEN.num_parameters / 8
    spread = memory_by_part(
        SEVEN,
        sizes,
        row,
        rows_tokens=row.total,
        sequence_ranks=8,
        all_ranks=8,
        strategy=Strategy(sharding="everything"),
    )
    # Whole are embedding, head and a layer, and the head's gradient, of which three copies are added up.
    assert spread["weights"] == 4 * SEVEN.num_parameters / 8 + 2 * SEVEN.num_vision_parameters
    assert spread["gathered weights"] == 2 * (2 * 152064 * 3584 + SEVEN.layer_weights)
    assert spread["gradients"] == 4 * SEVEN.num_parameters / 8 + 6 * 152064 * 3584
    assert spread["optimizer"] == 8 * SEVEN.num_parameters / 8
    plain = activation_bytes(SEVEN, 1000, Strategy())
    assert plain == 1000 * (28 * (8 * 3584 + (3 * 28 + 4 * 4) * 128 + 4 * 18944) + 2 * 18944) * 2
    assert activation_bytes(SEVEN, 1000, Strategy(is_checkpointed=True)) < plain / 8


def test_adapters_need_memory_of_their_own_and_no_reference() -> None:
    shape, strategy = replace(SEVEN, lora_rank=32), Strategy(is_checkpointed=True)
    # By layer: q, k, v, o between 3584, 3584 and 512 channels, and three matrices between 3584 and 18944.
    adapters = 28 * 32 * (7168 + 4096 + 4096 + 7168 + 3 * (3584 + 18944))
    assert shape.num_trained_parameters == shape.num_adapter_parameters == adapters
    sizes = Sizes.of(shape, num_frames=64, frame_pixels=128 * 28 * 28, group_size=8, response_tokens=1024)
    _, row = sizes.rows("shared")
    whole, small = (
        memory_by_part(each, sizes, row, rows_tokens=row.total, sequence_ranks=1, all_ranks=1, strategy=strategy)
        for each in (SEVEN, shape)
    )
    assert small["reference"] == 0
    assert small["weights"] == whole["weights"] + 2 * adapters
    assert (small["gradients"], small["optimizer"]) == (2 * adapters, 12 * adapters)
    # All gradients in float32 too, while the weights are updated; with adapters a layer's backward pass takes most.
    assert whole["gradients"] == 6 * SEVEN.num_parameters
    assert small["activations"] == activation_bytes(SEVEN, row.total, strategy) + row.total * 7 * 32 * 2
    seconds = [
        predict_stages(each, sizes, HOUR.hardware, num_ranks=1, mode="shared", is_checkpointed=True)
        for each in (SEVEN, shape)
    ]
    assert seconds[1]["update"] < seconds[0]["update"]
    assert seconds[1]["old"] == pytest.approx(seconds[0]["old"], rel=0.05)


def test_more_takes_longer_and_more_devices_take_less() -> None:
    at = [total(plan_step(replace(HOUR, num_frames=frames))) for frames in (256, 512, 1024, 2048, 3600)]
    assert at == sorted(at)
    assert total(plan_step(replace(HOUR, num_devices=16))) < total(plan_step(HOUR))
    assert total(plan_step(replace(HOUR, group_size=16))) > total(plan_step(HOUR))
    faster = replace(HOUR, hardware=find_accelerator("H100"))
    assert total(plan_step(faster)) < total(plan_step(HOUR))


def test_a_divergence_takes_passes_and_a_reference() -> None:
    none, loss, reward = (plan_step(replace(HOUR, kl=kl)) for kl in ("none", "loss", "reward"))
    assert plan_step(HOUR) == none
    assert none.seconds_by_stage.keys() == {"encode", "rollout", "update"}
    assert total(loss) == pytest.approx(total(none) + loss.seconds_by_stage["reference"])
    assert total(reward) == pytest.approx(total(loss) + reward.seconds_by_stage["old"])
    assert reward.seconds_by_stage["old"] == reward.seconds_by_stage["reference"] > 0
    assert loss.moved_bytes["attention"] - none.moved_bytes["attention"] > 0
    assert reward.moved_bytes["attention"] + none.moved_bytes["attention"] == pytest.approx(
        2 * loss.moved_bytes["attention"]
    )
    assert none.update_bytes["reference"] == 0 < loss.update_bytes["reference"] == reward.update_bytes["reference"]


def test_positions_of_an_hour_are_few_though_its_tokens_are_many() -> None:
    seconds = tuple(map(float, range(3600)))
    video = PlannedVideo(height=720, width=1280, seconds=seconds, budget=FrameBudget(frame_pixels=128 * 28 * 28))
    plan = plan_step(replace(HOUR, video=video))
    assert plan.sizes.prompt_tokens > 128_000 == SEVEN.max_positions
    assert plan.sizes.prompt_positions == 3598 * 2 + 1 + 2 + OTHER_TOKENS  # twice a second, and two markers
    assert not any("positions" in note for note in plan.notes)
    short = plan_step(replace(HOUR, video=video, shape=replace(SEVEN, max_positions=4096)))
    assert any("positions are more than the 4096" in note for note in short.notes)


def test_a_plan_fits_and_saves_no_more_than_it_must() -> None:
    plan = plan_step(HOUR)
    assert sum(plan.update_bytes.values()) < 80e9
    assert plan.sequence_ranks == plan.split.head_ranks * plan.split.token_ranks
    assert plan.strategy.is_checkpointed
    roomy = plan_step(
        PlanRequest(
            shape=MODELS["Qwen2.5-0.5B"],
            hardware=find_accelerator("H100"),
            num_devices=1,
            memory_bytes=80e9,
            num_frames=0,
            response_tokens=256,
            prompts_per_step=8,
        )
    )
    assert roomy.strategy == Strategy()
    assert roomy.groups_per_row == 8
    assert roomy.store_bytes == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shape": MODELS["Qwen2.5-VL-72B"], "num_devices": 4}, "doesn't fit on 4 devices of 80 GB.*most of it"),
        ({"num_frames": 100_000}, "use more devices.*lower --frames"),
        ({"shape": MODELS["Qwen2.5-7B"]}, "expected 0 for a text-only model"),
        ({"num_devices": 0}, "num_devices=0: expected 1 or more"),
        ({"memory_bytes": 0}, "memory_bytes=0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_change(changed: dict[str, object], words: str) -> None:
    with pytest.raises(EngineUsageError, match=words):
        plan_step(replace(HOUR, **changed))  # type: ignore[arg-type]


def test_names_are_found_and_others_listed(tmp_path: Path) -> None:
    assert find_shape("Qwen/Qwen2.5-VL-7B-Instruct") is SEVEN
    with pytest.raises(EngineUsageError, match=r"neither a folder.*Qwen2\.5-VL-3B"):
        find_shape("mine")
    with pytest.raises(EngineUsageError, match="expected one of A100"):
        find_accelerator("abacus")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineUsageError, match="can read"):
        read_shape(tmp_path)


def test_a_folder_is_read(tmp_path: Path) -> None:
    create_tiny_qwen2_5_vl(tmp_path / "tiny", corpus=["red"], num_layers=3, hidden_size=128, num_heads=4)
    shape = find_shape(str(tmp_path / "tiny"))
    assert (shape.num_layers, shape.hidden_size, shape.heads.query, shape.heads.channels) == (3, 128, 4, 32)
    assert shape.vision is not None
    assert shape.vision.tokens_per_group(112 * 112) == 16


def test_planning_needs_no_torch() -> None:
    code = "import sys, mrsp_engine.planner.search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("device_name", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", None),  # a slower board
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("CPU", None),
    ],
)
def test_only_devices_whose_speed_is_known_are_recognised(device_name, rate):
    found = recognise_accelerator(device_name)
    assert (None if found is None else found.matrix_rate) == rate
