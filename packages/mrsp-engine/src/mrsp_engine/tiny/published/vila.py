"""VILA, NVILA and LongVILA in their published layouts: three folders below one configuration that repeats theirs.

NVILA-8B is as written by VILA's trainer: no encoders are named, frames represent three scales, and the embedding ends
before the media tokens. NVILA-Lite and LongVILA-R1 are as converted for `trust_remote_code`, with encoders as a JSON
string or as an object, and with their code in the folder; here that code refuses to be imported.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from mrsp_engine.families.vila.config import LANGUAGE_FOLDER, PROJECTOR_FOLDER, TOWER_FOLDER
from mrsp_engine.families.vila.model import TOWER_PREFIX
from mrsp_engine.families.vila.projector import VilaProjector
from mrsp_engine.tiny.published.files import PublishedTokenizer, create_weights, write_card, write_json, write_weights
from mrsp_engine.tiny.published.templates import VILA_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = ["VILA_KINDS", "write_vila"]

VILA_KINDS = ("nvila_8b", "nvila_lite_2b", "longvila_r1_7b")

_PROJECTORS = {
    "nvila_8b": "mlp_downsample",
    "nvila_lite_2b": "mlp_downsample_3x3_fix",
    "longvila_r1_7b": "mlp_downsample_2x2_fix",
}
_SCALES = {"nvila_8b": 3}
_CODE_FILES = ("auto_processor", "configuration_vila", "media_encoder", "modeling_vila")
_SPECIALS = (END_OF_TEXT, "<|im_start|>", END_OF_TURN, "[BOS]", "[PAD]")
_MEDIA = ("<vila/sentinel>", "<image>", "<vila/video>")
HIDDEN_SIZE, TOWER_SIZE = 96, 64
PATCHES_PER_SIDE, PATCH_SIZE = 5, 14


def write_vila(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `VILA_KINDS`."""
    tokenizer = PublishedTokenizer(specials=(*_SPECIALS, *_MEDIA), plain=())
    is_converted = kind != "nvila_8b"
    language = _language_config(tokenizer, is_tied=kind == "nvila_lite_2b", has_media_rows=is_converted)
    tower, projector = _tower_config(), _projector_config(_PROJECTORS[kind])
    parts = {LANGUAGE_FOLDER: language, TOWER_FOLDER: tower, PROJECTOR_FOLDER: projector}
    for name, values in parts.items():
        write_json(folder / name / "config.json", values)
    write_json(folder / "config.json", _config(kind, parts))
    _write_language(folder / LANGUAGE_FOLDER, tokenizer, language, seed, is_fast=is_converted)
    weights = create_weights(SiglipVisionModel, SiglipVisionConfig(**tower), seed)
    write_weights(folder / TOWER_FOLDER, {f"{TOWER_PREFIX}{name}": weight for name, weight in weights.items()})
    write_json(folder / TOWER_FOLDER / "preprocessor_config.json", _image_processor())
    write_weights(folder / PROJECTOR_FOLDER, _projector_weights(kind, seed))
    if is_converted:
        for name in _CODE_FILES:
            code = f'"""Code of a checkpoint."""\n\nraise RuntimeError("{name}.py of a checkpoint was run")\n'
            (folder / f"{name}.py").write_text(code, encoding="utf-8")
    write_card(folder, kind)


def _config(kind: str, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    is_converted = kind != "nvila_8b"
    num_scales = _SCALES.get(kind, 1)
    values: dict[str, Any] = {
        "_attn_implementation_autoset": True,
        "_name_or_path": f"runs/{kind}/model",
        "architectures": ["VILAForCausalLM" if is_converted else "LlavaLlamaModel"],
        "chat_template": None,
        "drop_path_rate": 0.0,
        "fps": 0.0,
        "hidden_size": HIDDEN_SIZE,
        "image_aspect_ratio": "dynamic_s2" if num_scales > 1 else "resize",
        "interpolate_mode": "linear",
        "llm_cfg": parts[LANGUAGE_FOLDER],
        "mm_hidden_size": TOWER_SIZE * num_scales,
        "mm_projector_cfg": parts[PROJECTOR_FOLDER],
        "mm_projector_lr": None,
        "mm_use_im_patch_token": True,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": "torch.bfloat16",
        "model_type": "vila" if is_converted else "llava_llama",
        "num_time_tokens": 0,
        "num_video_frames": 8,
        "resume_path": f"runs/{kind}/model",
        "s2": False,
        "s2_max_split_size": 448,
        "s2_resize_output_to_scale_idx": -1,
        "s2_scales": "448,896,1344",
        "soft_ce_std": 1.0,
        "time_token_format": "<t{t}>",
        "time_token_ids": [],
        "transformers_version": "4.46.0",
        "tune_language_model": True,
        "tune_mm_projector": True,
        "tune_vision_tower": True,
        "vision_resolution": -1,
        "vision_tower_cfg": parts[TOWER_FOLDER],
    }
    if num_scales > 1:
        values["dynamic_s2"] = True
    if is_converted:
        values |= {"version": "2.0", "auto_map": _auto_map(), **_encoders(is_text=kind == "nvila_lite_2b")}
    return dict(sorted(values.items()))


def _auto_map() -> dict[str, str]:
    model = "modeling_vila.VILAForCausalLM"
    return {
        "AutoProcessor": "auto_processor.VILAProcessor",
        "AutoConfig": "modeling_vila.VILAConfig",
        "AutoModel": model,
        "AutoModelForCausalLM": model,
    }


def _encoders(*, is_text: bool) -> dict[str, Any]:
    """The encoders as objects, or as the JSON text that is the default of VILA's configuration class."""
    targets = {f"{name.lower()}_encoder": f"llava.model.encoders.Basic{name}Encoder" for name in ("Image", "Video")}
    if is_text:
        return {key: f'{{"_target_": "{target}"}}' for key, target in targets.items()}
    return {key: {"_target_": target} for key, target in targets.items()}


def _language_config(tokenizer: PublishedTokenizer, *, is_tied: bool, has_media_rows: bool) -> dict[str, Any]:
    return {
        "_name_or_path": "runs/model/llm",
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.ids[END_OF_TEXT],
        "eos_token_id": tokenizer.ids[END_OF_TURN],
        "hidden_act": "silu",
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 32768,
        "max_window_layers": 3,
        "model_max_length": 8192,
        "model_type": "qwen2",
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": is_tied,
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.size if has_media_rows else tokenizer.size - len(_MEDIA),
    }


def _write_language(
    folder: Path, tokenizer: PublishedTokenizer, config: dict[str, Any], seed: int, *, is_fast: bool
) -> None:
    end, text_end = tokenizer.ids[END_OF_TURN], tokenizer.ids[END_OF_TEXT]
    generation = {
        "bos_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
        "pad_token_id": text_end,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "transformers_version": "4.46.0",
    }
    write_json(folder / "generation_config.json", generation)
    tokenizer.write(folder, template=VILA_TEMPLATE, max_length=8192, is_fast=is_fast, legacy=False)
    write_weights(folder, create_weights(Qwen2ForCausalLM, Qwen2Config(**config), seed), num_shards=4)


def _tower_config() -> dict[str, Any]:
    return {
        "_name_or_path": "runs/model/vision_tower",
        "architectures": ["SiglipVisionModel"],
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": TOWER_SIZE,
        "image_size": PATCHES_PER_SIDE * PATCH_SIZE,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "num_image_tokens": PATCHES_PER_SIDE**2,
        "patch_size": PATCH_SIZE,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
        "vision_use_head": False,
    }


def _image_processor() -> dict[str, Any]:
    side = PATCHES_PER_SIDE * PATCH_SIZE
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }


def _projector_config(projector_type: str) -> dict[str, Any]:
    return {
        "_name_or_path": "runs/model/mm_projector",
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": projector_type,
        "model_type": "v2l_projector",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
    }


def _projector_weights(kind: str, seed: int) -> dict[str, torch.Tensor]:
    def create(_: None) -> VilaProjector:
        width = TOWER_SIZE * _SCALES.get(kind, 1)
        return VilaProjector(_PROJECTORS[kind], vision_width=width, hidden_size=HIDDEN_SIZE)

    return create_weights(create, None, seed)
