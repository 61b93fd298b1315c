"""What vLLM can't compute of linear attention on CPUs is refused before it starts."""

from typing import Any

import pytest

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.rollout.vllm.linear_layers import refuse_linear_layers

LAYERS = {"layer_types": ["linear_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("text", "dtype", "has_adapter", "message"),
    [
        ({}, "float32", False, "dtype='float32'"),
        ({"linear_key_head_dim": 32}, "bfloat16", False, "linear_key_head_dim=32"),
        ({"linear_value_head_dim": 96}, "bfloat16", False, "linear_value_head_dim=96"),
        ({}, "bfloat16", True, 'sampler.lora_sync = "merged"'),
    ],
)
def test_it_is_refused_in_one_line(text: dict[str, Any], dtype: str, has_adapter: bool, message: str) -> None:
    with pytest.raises(EngineUsageError) as raised:
        refuse_linear_layers({"text_config": LAYERS | text}, dtype=dtype, has_adapter=has_adapter)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_rest_is_not() -> None:
    refuse_linear_layers({"text_config": LAYERS}, dtype="bfloat16", has_adapter=False)
    refuse_linear_layers({"layer_types": ["full_attention"]}, dtype="float32", has_adapter=True)
    refuse_linear_layers({"linear_key_head_dim": 32}, dtype="float16", has_adapter=False)
