"""Tiny random checkpoints of every vision and text family, for tests and trials.

Each is an ordinary folder that `mrsp_engine.families.load_policy` and vLLM load like a published one. Their vision
tower is random and only scaled so that it affects the output; `mrsp_engine.tiny.qwen2_5_vl` builds one that can learn.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER, PROJECTOR_FOLDER, TOWER_FOLDER
from mrsp_engine.families.vila.model import PROJECTOR_FILE, TOWER_PREFIX
from mrsp_engine.families.vila.policy import MEDIA_TEXTS
from mrsp_engine.families.vila.projector import VilaProjector
from mrsp_engine.tiny.language import (
    LanguageSizes,
    create_tiny_qwen2,
    create_tiny_qwen3,
    generation_config,
    language_settings,
)
from mrsp_engine.tiny.qwen2_5_omni import create_tiny_qwen2_5_omni
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl
from mrsp_engine.tiny.qwen3_5 import create_tiny_qwen3_5, create_tiny_qwen3_5_moe
from mrsp_engine.tiny.qwen_vl import (
    CORPUS,
    PATCH_SIZE,
    TINY_SIZES,
    TOWER_HEADS,
    TOWER_SETTINGS,
    create_tiny_qwen2_vl,
    create_tiny_qwen3_vl,
    create_tiny_qwen3_vl_moe,
)
from mrsp_engine.tiny.tokenizer import train_tokenizer
from mrsp_engine.tiny.vision import make_vision_matter

__all__ = ["TINY_FAMILIES", "TINY_SIZES", "build_tiny", "create_tiny_qwen3_vl", "create_tiny_vila"]

VILA_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""Like that of published VILA checkpoints it accepts only text."""


def build_tiny(family: str, folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES) -> None:
    """Write a tiny checkpoint of a family.

    Args:
        family: Its model type; one of `TINY_FAMILIES`.
        folder: The output folder; it must not exist or be empty.
        seed: Seed of the weights.
        sizes: Dimensions of the language model.

    Raises:
        EngineUsageError: There is no builder for the family, or the folder isn't empty.
        EngineError: The folder can't be written.
    """
    if family not in TINY_FAMILIES:
        raise EngineUsageError(f"family {family!r}: expected one of {', '.join(sorted(TINY_FAMILIES))}")
    TINY_FAMILIES[family](folder, seed, sizes)


def create_tiny_vila(
    folder: Path,
    seed: int = 0,
    sizes: LanguageSizes = TINY_SIZES,
    *,
    projector_type: str = "mlp_downsample_2x2_fix",
    patches_per_side: int = 5,
    pool_frames: int = 1,
    num_scales: int = 1,
) -> None:
    """Write a VILA checkpoint in the published folder layout; see `build_tiny`.

    Args:
        folder: The output folder.
        seed: Seed of the weights.
        sizes: Dimensions of the language model.
        projector_type: Its projector.
        patches_per_side: Patches per side of a frame.
        pool_frames: Frames averaged into one; 1 for a checkpoint without temporal pooling.
        num_scales: Number of scales in which it sees images (`dynamic_s2`).
    """
    require_empty(folder)
    tokenizer = train_tokenizer(CORPUS, sizes.vocabulary_size, sizes.max_position_embeddings)
    tokenizer.add_tokens(list(MEDIA_TEXTS.values()), special_tokens=True)
    tokenizer.chat_template = VILA_CHAT_TEMPLATE
    pooling = {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[pool_frames, 1, 1]]}
    values: dict[str, Any] = {
        "architectures": ["VILAForCausalLM"],
        "model_type": "vila",
        "hidden_size": sizes.hidden_size,
        "mm_hidden_size": TOWER_SETTINGS["hidden_size"],
        "image_aspect_ratio": "resize",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"},
        "video_encoder": pooling if pool_frames > 1 else {"_target_": "llava.model.encoders.BasicVideoEncoder"},
    }
    if num_scales > 1:
        values |= {"dynamic_s2": True, "s2_scales": ",".join(str(448 * (scale + 1)) for scale in range(num_scales))}
    projector_values = {"model_type": "v2l_projector", "mm_projector_type": projector_type}
    image_size = patches_per_side * PATCH_SIZE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm = Qwen2ForCausalLM(
            Qwen2Config(**language_settings(sizes, tokenizer), tie_word_embeddings=False, dtype="float32")
        )
        tower = SiglipVisionModel(
            SiglipVisionConfig(
                **TOWER_SETTINGS,
                num_hidden_layers=3,
                num_attention_heads=TOWER_HEADS,
                image_size=image_size,
                patch_size=PATCH_SIZE,
            )
        )
        projector = VilaProjector(
            projector_type,
            vision_width=TOWER_SETTINGS["hidden_size"] * num_scales,
            hidden_size=sizes.hidden_size,
        )
        make_vision_matter([projector])
    llm.generation_config = generation_config(llm.config)
    images = SiglipImageProcessor(size={"height": image_size, "width": image_size})

    def write(temporary: Path) -> None:
        llm.save_pretrained(temporary / LANGUAGE_FOLDER)
        tokenizer.save_pretrained(temporary / LANGUAGE_FOLDER)
        tower_weights = {f"{TOWER_PREFIX}{name}": tensor for name, tensor in tower.state_dict().items()}
        tower.save_pretrained(temporary / TOWER_FOLDER, state_dict=tower_weights)
        images.save_pretrained(temporary / TOWER_FOLDER)
        (temporary / PROJECTOR_FOLDER).mkdir()
        save_file(projector.state_dict(), temporary / PROJECTOR_FOLDER / PROJECTOR_FILE, metadata={"format": "pt"})
        for folder_name, content in ((PROJECTOR_FOLDER, projector_values), ("", values)):
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (temporary / folder_name / "config.json").write_text(text, encoding="utf-8")

    write_checkpoint(folder, write)


def _create_tiny_qwen2_5_vl(folder: Path, seed: int, sizes: LanguageSizes) -> None:
    create_tiny_qwen2_5_vl(
        folder,
        corpus=CORPUS,
        seed=seed,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        intermediate_size=sizes.intermediate_size,
        vocabulary_size=sizes.vocabulary_size,
        max_position_embeddings=sizes.max_position_embeddings,
    )


TINY_FAMILIES: Mapping[str, Callable[[Path, int, LanguageSizes], None]] = {
    "qwen2": lambda folder, seed, sizes: create_tiny_qwen2(folder, corpus=CORPUS, seed=seed, sizes=sizes),
    "qwen2_5_omni": create_tiny_qwen2_5_omni,
    "qwen2_5_vl": _create_tiny_qwen2_5_vl,
    "qwen2_vl": create_tiny_qwen2_vl,
    "qwen3": lambda folder, seed, sizes: create_tiny_qwen3(folder, corpus=CORPUS, seed=seed, sizes=sizes),
    "qwen3_5": create_tiny_qwen3_5,
    "qwen3_5_moe": create_tiny_qwen3_5_moe,
    "qwen3_vl": create_tiny_qwen3_vl,
    "qwen3_vl_moe": create_tiny_qwen3_vl_moe,
    "vila": create_tiny_vila,
}
"""Builders by model type."""
