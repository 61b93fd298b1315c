"""The tiny checkpoint: accepted by transformers, reproducible to the byte, with an informative tower."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.tiny.qwen2_5_vl import DEFAULT_SYSTEM, create_tiny_qwen2_5_vl

CORPUS = [f"At 00:{second:02d} the red circle meets the blue square." for second in range(60)] + ["<think> </think>"]
SCRIPT = """
import sys
from pathlib import Path
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl
for name, seed in (("same", 3), ("other", 4)):
    create_tiny_qwen2_5_vl(Path(sys.argv[1]) / name, corpus={corpus!r}, seed=seed)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    create_tiny_qwen2_5_vl(folder, corpus=iter(CORPUS), seed=3)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    script = SCRIPT.format(corpus=CORPUS)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    assert contents(tmp_path / "same") == contents(folder)
    assert contents(tmp_path / "other")["model.safetensors"] != contents(folder)["model.safetensors"]
    assert contents(tmp_path / "other")["tokenizer.json"] == contents(folder)["tokenizer.json"]


def test_building_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    create_tiny_qwen2_5_vl(tmp_path / "tiny", corpus=CORPUS)
    assert torch.equal(torch.rand(3), expected)


def test_transformers_loads_it_and_answers_about_a_video(folder: Path) -> None:
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which shape left?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>Which shape left?<|im_end|>\n<|im_start|>assistant\n"
    )
    video = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), dtype=np.uint8)
    inputs = processor(text=[text], videos=[video], do_sample_frames=False, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[2, 8, 8]]
    assert (inputs["input_ids"] == model.config.video_token_id).sum() == 2 * 4 * 4
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 10_000_000
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    sections = model.config.text_config.rope_parameters["mrope_section"]
    assert 2 * sum(sections) == model.config.text_config.hidden_size // model.config.text_config.num_attention_heads


@pytest.mark.parametrize("text", ["", " a  b\n\nc", "naïve — 漢字 🙂\x00", "00:12 the red circle", "<think>x</think>"])
def test_tokenizer_loses_nothing(folder: Path, text: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tokenizer_knows_the_words_of_its_corpus(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize(" the red circle") == ["Ġthe", "Ġred", "Ġcircle"]
    assert tokenizer.tokenize("12") == ["1", "2"]
    assert len(tokenizer.tokenize("<|im_start|>user\n<|video_pad|>")) == 4


def test_tower_tells_colours_and_places_apart(folder: Path) -> None:
    """A linear reading of the random tower's tokens finds colour and place of a square in images it wasn't fit to."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    generator = np.random.default_rng(0)
    colours = np.array([[220, 40, 40], [40, 190, 60], [50, 80, 220], [230, 210, 50], [240, 240, 240]])
    frames, labels = [], []
    for index in range(1000):
        frame = np.full((2, 56, 56, 3), 25 + index % 20, np.uint8)
        colour, top, left = generator.integers(5), generator.integers(0, 40), generator.integers(0, 40)
        frame[:, top : top + 14, left : left + 14] = colours[colour]
        frames.append(frame)
        labels.append(colour * 4 + (top + 7) // 28 * 2 + (left + 7) // 28)
    inputs = processor.video_processor(frames, do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        tower = model.model.visual
        tokens = tower(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]).pooler_output
    assert 0.1 < tokens.pow(2).mean().sqrt().item() < 3  # these images are simpler than those it was scaled on
    readable = tokens / tokens.pow(2).mean().sqrt()  # so that the ridge below means the same at any scale
    features = torch.cat([readable.view(1000, -1), torch.ones(1000, 1)], dim=1).double()
    targets = torch.nn.functional.one_hot(torch.tensor(labels), 20).double()
    fitted, unseen = slice(0, 800), slice(800, 1000)
    gram = features[fitted] @ features[fitted].T + 1.0 * torch.eye(800)
    weights = features[fitted].T @ torch.linalg.solve(gram, targets[fitted])
    accuracy = ((features[unseen] @ weights).argmax(1) == torch.tensor(labels)[unseen]).double().mean().item()
    assert accuracy > 0.8  # chance is 0.05


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"hidden_size": 96, "num_heads": 6, "num_key_value_heads": 2}, "head size 16"),
        ({"num_heads": 5}, "num_heads"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"vocabulary_size": 200}, "vocabulary_size"),
        ({"frame_pixels": 100}, "frame_pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, int], named: str) -> None:
    with pytest.raises(EngineUsageError, match=named):
        create_tiny_qwen2_5_vl(tmp_path / "tiny", corpus=CORPUS, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(EngineUsageError, match="not an empty folder"):
        create_tiny_qwen2_5_vl(tmp_path, corpus=CORPUS)
