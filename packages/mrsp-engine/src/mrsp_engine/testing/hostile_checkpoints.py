"""Checkpoints as somebody else might publish them, made by code: what loading must refuse in one line.

Each change is made to a sound checkpoint of `HOSTILE_KIND` or, for models in parts, `HOSTILE_PARTS_KIND`
(`mrsp_engine.tiny.published`), and gets a folder with files that must stay as they are: links lead there.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

__all__ = ["HOSTILE_CHECKPOINTS", "HOSTILE_KIND", "HOSTILE_PARTS", "HOSTILE_PARTS_KIND"]

HOSTILE_KIND, HOSTILE_PARTS_KIND = "qwen2_5_vl_3b", "longvila_r1_7b"

Change = Callable[[Path, Path], None]

_INDEX = "model.safetensors.index.json"
_ENDLESS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
_WRITES_WITHOUT_END = "{% for i in range(90000) %}{% for j in range(90000) %}longer and longer{% endfor %}{% endfor %}"


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
    return values


def _set(name: str, **changes: Any) -> Change:
    """Give names in a JSON file other values."""

    def change(folder: Path, outside: Path) -> None:
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(_merge(values, changes)))

    return change


def _write(name: str, text: str | bytes) -> Change:
    def change(folder: Path, outside: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return change


def _other(name: str, kind: str) -> Change:
    """Put something else in a file's or a folder's place."""

    def change(folder: Path, outside: Path) -> None:
        path = folder / name
        outside.mkdir(exist_ok=True)
        if path.exists() and kind == "link":
            shutil.move(path, outside / "moved")
        elif path.exists():
            path.unlink()
        path.parent.mkdir(exist_ok=True)
        if kind == "link":
            (outside / "moved").touch()
            path.symlink_to(outside / "moved")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()

    return change


def _shard(change: Callable[[Path, Path], None]) -> Change:
    """Change the first file of weights."""

    def of_first(folder: Path, outside: Path) -> None:
        change(min(folder.glob("model*.safetensors")), outside)

    return of_first


def _shard_as(kind: str) -> Change:
    return _shard(lambda path, outside: _other(path.name, kind)(path.parent, outside))


def _index_names(name: object) -> Change:
    def change(folder: Path, outside: Path) -> None:
        outside.mkdir(exist_ok=True)
        (folder / "inner").mkdir()
        weights: dict[str, Any] = {}
        for path in folder.glob("model*.safetensors"):
            weights |= load_file(path)
        for place in (outside, folder / "inner"):  # all of them, so that a careless reader would be content
            save_file(weights, place / "other.safetensors", metadata={"format": "pt"})
        index = json.loads((folder / _INDEX).read_text())
        written = str(outside / "other.safetensors") if name == "absolute" else name
        index["weight_map"] = dict.fromkeys(index["weight_map"], written)
        (folder / _INDEX).write_text(json.dumps(index))

    return change


def _cut(path: Path, outside: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _no_tensors(path: Path, outside: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def _claims_more(path: Path, outside: Path) -> None:
    """A header that claims a gigantic tensor, in a file that has it as a hole."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**40)


def _as_pickles(folder: Path, outside: Path) -> None:
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))


def _template(text: Any) -> Change:
    """Another chat template, in the one place where all readers look for it."""

    def change(folder: Path, outside: Path) -> None:
        for name in ("chat_template.json", "chat_template.jinja"):
            (folder / name).unlink(missing_ok=True)
        _set("tokenizer_config.json", chat_template=text)(folder, outside)
        if isinstance(text, str):
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))

    return change


HOSTILE_CHECKPOINTS: dict[str, Change] = {
    # Lists of weights.
    "index_leads_up": _index_names("../outside/other.safetensors"),
    "index_leads_down": _index_names("inner/other.safetensors"),
    "index_is_absolute": _index_names("absolute"),
    "index_names_a_folder": _index_names("inner"),
    "index_names_nothing": _index_names("absent.safetensors"),
    "index_names_a_pickle": _index_names("pytorch_model.bin"),
    "index_names_numbers": _index_names(5),
    "index_is_a_list": _write(_INDEX, "[]"),
    "index_without_map": _write(_INDEX, '{"weight_map": ["model.safetensors"]}'),
    "index_is_deep": _write(_INDEX, "[" * 100_000),
    "index_is_a_link": _other(_INDEX, "link"),
    "index_is_a_fifo": _other(_INDEX, "fifo"),
    # Weights.
    "weights_link": _shard_as("link"),
    "weights_fifo": _shard_as("fifo"),
    "weights_folder": _shard_as("folder"),
    "weights_cut": _shard(_cut),
    "weights_claim_more": _shard(_claims_more),
    "weights_are_no_tensors": _shard(_no_tensors),
    "pickles": _as_pickles,
    "adapter": _write("adapter_config.json", '{"base_model_name_or_path": "../outside"}'),
    "other_weights_named": _set("config.json", transformers_weights="../outside/other.safetensors"),
    # config.json as a file.
    "config_link": _other("config.json", "link"),
    "config_fifo": _other("config.json", "fifo"),
    "config_folder": _other("config.json", "folder"),
    "config_is_deep": _write("config.json", '{"a":' * 100_000),
    "config_is_large": _write("config.json", "{" + " " * (9 << 20) + "}"),
    "config_is_a_list": _write("config.json", "[]"),
    "config_is_not_text": _write("config.json", b"\xff\xfe{}"),
    "config_is_infinite": _write("config.json", '{"model_type": "qwen2_5_vl", "rope_theta": 1e999}'),
    # Its values: sizes that nobody has, and of other kinds.
    "layers_without_end": _set("config.json", num_hidden_layers=10**12),
    "layers_of_another_model": _set("config.json", num_hidden_layers=4000),
    "negative_layers": _set("config.json", num_hidden_layers=-1),
    "wide": _set("config.json", hidden_size=2**19),
    "wider": _set("config.json", hidden_size=10**15),
    "large_vocabulary": _set("config.json", vocab_size=2**25),
    "text_for_a_width": _set("config.json", hidden_size="wide"),
    "truth_for_a_width": _set("config.json", hidden_size=True),
    "fraction_for_layers": _set("config.json", num_hidden_layers=2.5),
    "no_heads": _set("config.json", num_attention_heads=0),
    "list_for_rope": _set("config.json", rope_scaling=["mrope"]),
    "text_in_rope": _set("config.json", rope_scaling={"factor": "two"}),
    "text_for_theta": _set("config.json", rope_theta="large"),
    "text_for_an_end": _set("config.json", eos_token_id="end"),
    "text_for_a_placeholder": _set("config.json", video_token_id="video"),
    "list_for_a_type": _set("config.json", model_type=["qwen2_5_vl"]),
    "unknown_type": _set("config.json", model_type="x" * 10_000 + "\x1b[2J"),
    "list_for_vision": _set("config.json", vision_config=[]),
    "deep_tower": _set("config.json", vision_config={"depth": 4000}),
    "deeper_tower": _set("config.json", vision_config={"depth": 10**9}),
    "patches_of_nothing": _set("config.json", vision_config={"patch_size": 0}),
    "large_patches": _set("config.json", vision_config={"patch_size": 4000}),
    "large_merges": _set("config.json", vision_config={"spatial_merge_size": 1000}),
    "text_for_indexes": _set("config.json", vision_config={"fullatt_block_indexes": "all"}),
    "quantized": _set("config.json", quantization_config={"quant_method": "awq", "bits": 4}),
    "quantized_by_a_list": _set("config.json", quantization_config=["\x1b[2J"]),
    "number_for_architectures": _set("config.json", architectures=5),
    # Tokenizer, templates, processor, generation.
    "tokenizer_link": _other("tokenizer.json", "link"),
    "tokenizer_fifo": _other("tokenizer.json", "fifo"),
    "tokenizer_is_none": _write("tokenizer.json", '{"model": 5}'),
    "tokenizer_is_a_list": _write("tokenizer.json", "[]"),
    "tokenizer_elsewhere": _set("tokenizer_config.json", fast_tokenizer_files=["../outside/tokenizer.9.json"]),
    "tokenizer_settings_are_a_list": _write("tokenizer_config.json", "[]"),
    "tokenizer_settings_fifo": _other("tokenizer_config.json", "fifo"),
    "merges_fifo": _other("merges.txt", "fifo"),
    "template_endless": _template(_ENDLESS),
    "template_writes_without_end": _template(_WRITES_WITHOUT_END),
    "template_takes_memory": _template("{{ 'a' * 10**11 }}"),
    "template_writes_much": _template("{{ 'a' * 10**7 }}"),
    "template_raises": _template("{{ raise_exception('no\\nconversation') }}"),
    "template_is_broken": _template("{% if"),
    "template_link": _other("chat_template.jinja", "link"),
    "template_fifo": _other("chat_template.jinja", "fifo"),
    "more_templates_fifo": _other("additional_chat_templates/tool.jinja", "fifo"),
    "more_templates_link": _other("additional_chat_templates/tool.jinja", "link"),
    "processor_is_a_list": _write("preprocessor_config.json", "[]"),
    "processor_fifo": _other("preprocessor_config.json", "fifo"),
    "processor_link": _other("preprocessor_config.json", "link"),
    "text_for_patches": _set("preprocessor_config.json", patch_size="large"),
    "merges_of_nothing": _set("preprocessor_config.json", merge_size=0),
    "large_frames": _set("preprocessor_config.json", min_pixels=2**31, max_pixels=2**31),
    "text_for_pixels": _set("preprocessor_config.json", min_pixels="few"),
    "generation_is_a_list": _write("generation_config.json", "[]"),
    "generation_fifo": _other("generation_config.json", "fifo"),
    "generation_link": _other("generation_config.json", "link"),
    "generation_ends_with_text": _set("generation_config.json", eos_token_id=["end"]),
}
"""What is refused, by name; a template that raises or writes much when the first prompt is built."""

HOSTILE_PARTS: dict[str, Change] = {
    "language_model_link": _other("llm", "link"),
    "tower_link": _other("vision_tower", "link"),
    "projector_link": _other("mm_projector", "link"),
    "projector_weights_link": _other("mm_projector/model.safetensors", "link"),
    "projector_weights_fifo": _other("mm_projector/model.safetensors", "fifo"),
    "projector_config_fifo": _other("mm_projector/config.json", "fifo"),
    "projector_config_is_a_list": _write("mm_projector/config.json", "[]"),
    "projector_type_is_a_number": _set("mm_projector/config.json", mm_projector_type=5),
    "projector_of_other_size": _set("mm_projector/config.json", mm_projector_type="mlp9x_gelu"),
    "language_config_fifo": _other("llm/config.json", "fifo"),
    "language_index_leads_up": _set("llm/model.safetensors.index.json", weight_map={"x": "../config.json"}),
    "language_layers": _set("llm/config.json", num_hidden_layers=4000),
    "tower_layers": _set("vision_tower/config.json", num_hidden_layers=4000),
    "tower_frames": _set("vision_tower/config.json", image_size=2**15),
    "tower_processor_is_a_list": _write("vision_tower/preprocessor_config.json", "[]"),
    "many_scales": _set("config.json", dynamic_s2=True, s2_scales=list(range(1, 10**6))),
    "layer_is_a_text": _set("config.json", mm_vision_select_layer="last"),
    "deep_encoder": _set("config.json", video_encoder='{"a":' * 10_000),
    "large_encoder": _set("config.json", video_encoder={"_target_": "x" * 100_000}),
    "pool_of_nothing": _set("config.json", video_encoder={"_target_": "TSPVideoEncoder", "pool_sizes": [[0, 1, 1]]}),
}
"""The same for a model in parts."""
