"""Adapters by themselves, in the files that diffusers' own `load_lora_weights` reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from longrl_omni.generation.policies.model_files import save_folder

ADAPTER_NAME = "pytorch_lora_weights.safetensors"
"""Of the adapters of the first network; those of a second one are beside it."""
SECOND_ADAPTER_NAME = "transformer_2.safetensors"
"""Read by `load_lora_weights(FOLDER, weight_name="transformer_2.safetensors", load_into_transformer_2=True)`."""


def save_pipeline_adapters(folder: Path, pipeline: Any, networks: Sequence[nn.Module]) -> None:
    """Write the adapters of networks of a pipeline, with their scale, without which diffusers takes alpha for rank.

    Args:
        folder: Where; complete or not there.
        pipeline: The pipeline that writes them in its own format.
        networks: One network with adapters, or two.
    """
    from peft import get_peft_model_state_dict

    def write(partial: Path) -> None:
        for network, name in zip(networks, (ADAPTER_NAME, SECOND_ADAPTER_NAME), strict=False):
            config = cast(Any, network).peft_config["default"].to_dict()
            pipeline.save_lora_weights(
                partial,
                transformer_lora_layers=get_peft_model_state_dict(network),
                transformer_lora_adapter_metadata=config | {"target_modules": sorted(config["target_modules"])},
                weight_name=name,
            )

    save_folder(folder, write)


def save_network_adapters(folder: Path, network: nn.Module) -> None:
    """Write the adapters of a network of diffusers that is in no pipeline."""
    save_folder(folder, lambda partial: cast(Any, network).save_lora_adapter(partial, weight_name=ADAPTER_NAME))
