"""Rewards by models: numbers against transformers' own, with random weights made here, and texts that are read."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import build_tokenizer
from torch import Tensor

from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.jpeg import as_bytes
from longrl_omni.generation.rewards.judging import judge_samples, load_generation_rewards
from longrl_omni.generation.rewards.written_text import agreement, quoted_text
from longrl_trainer.errors import TrainerError, TrainerUsageError
from mrsp_engine.errors import EngineError

PROMPTS = ("a cat", "two dogs", "a cat")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights with its processor, in the published layout."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(folder / "letters")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, **ends},
        vision_config={**sizes, "image_size": 16, "patch_size": 4},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder / "model")
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(processor, tokenizer).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def requests() -> list[PictureRequest]:
    """Three pictures that aren't square."""
    pictures = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    return [PictureRequest(prompt=prompt, picture=picture) for prompt, picture in zip(PROMPTS, pictures, strict=True)]


def judge(name: str, settings: dict[str, Any], requests: list[PictureRequest]) -> list[float | None]:
    rewards = load_generation_rewards({name: {"weight": 1.0, **settings}})
    return judge_samples(rewards, requests).values(name)


def ask_transformers(folder: Path, requests: list[PictureRequest]) -> tuple[Tensor, Tensor, Any]:
    """The logits of every picture and its prompt, the embeddings of pictures, and the model, one by one."""
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    logits: list[Tensor] = []
    embeddings: list[Tensor] = []
    for request in requests:
        image = Image.fromarray(as_bytes(request.picture).numpy())
        with torch.no_grad():
            found = model(**processor(text=[request.prompt], images=[image], return_tensors="pt"))
        logits.append(found.logits_per_image[0, 0])
        embeddings.append(found.image_embeds[0])
    return torch.stack(logits), torch.stack(embeddings), model


@pytest.mark.parametrize("pictures_per_pass", [1, 2, 32])
def test_similarity_and_pick_score_are_those_of_transformers(
    pictures_per_pass: int, clip_folder: Path, requests: list[PictureRequest]
) -> None:
    logits, _, model = ask_transformers(clip_folder, requests)
    settings = {"folder": str(clip_folder), "device": "cpu", "pictures_per_pass": pictures_per_pass}
    assert judge("pick_score", settings, requests) == pytest.approx(logits.tolist(), rel=1e-4, abs=1e-5)
    cosines = (logits / model.logit_scale.exp()).tolist()
    assert judge("clip_similarity", settings, requests) == pytest.approx(cosines, rel=1e-4, abs=1e-6)
    assert len(set(logits.tolist())) == 3


def test_a_processor_may_lie_elsewhere_and_long_prompts_are_cut_as_clip_cuts_them(
    clip_folder: Path, requests: list[PictureRequest], tmp_path: Path
) -> None:
    for part, names in (("model", ("config.json", "model.safetensors")), ("processor", None)):
        (tmp_path / part).mkdir()
        for path in clip_folder.iterdir():
            if names is None or path.name in names:
                (tmp_path / part / path.name).write_bytes(path.read_bytes())
    settings = {"folder": str(tmp_path / "model"), "processor": str(tmp_path / "processor")}
    expected = judge("clip_similarity", {"folder": str(clip_folder)}, requests)
    assert judge("clip_similarity", settings, requests) == expected
    long, cut = ([PictureRequest(prompt="a " * count, picture=requests[0].picture)] for count in (100, 14))
    assert judge("clip_similarity", settings, long) == judge("clip_similarity", settings, cut)


def write_head(path: Path, sizes: tuple[int, ...], **others: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Linear layers under LAION's names, whose numbers count what lies between them too."""
    source = torch.Generator().manual_seed(2)
    layers = [
        (torch.randn(after, before, generator=source), torch.randn(after, generator=source))
        for before, after in pairwise(sizes)
    ]
    tensors = {
        f"layers.{2 * number}.{kind}": tensor
        for number, layer in enumerate(layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    save_file(tensors | others, path)
    return layers


def test_aesthetics_is_the_head_on_the_embedding(
    clip_folder: Path, requests: list[PictureRequest], tmp_path: Path
) -> None:
    marks = ask_transformers(clip_folder, requests)[1]
    for weight, bias in write_head(tmp_path / "head.safetensors", (12, 16, 8, 1)):
        marks = marks @ weight.T + bias
    settings = {"folder": str(clip_folder), "head": str(tmp_path / "head.safetensors")}
    assert judge("aesthetics", settings, requests) == pytest.approx(marks[:, 0].tolist(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("sizes", "others", "message"),
    [
        ((7, 1), {}, "layer 0 has weights (1, 7) and biases (1,), expected ones that take 12 numbers"),
        ((12, 4), {}, "has 2 tensors in 1 layers that end with 4 numbers; expected"),
        ((12, 1), {"other": torch.zeros(1)}, "has 3 tensors in 1 layers that end with 1 numbers"),
    ],
)
def test_a_head_of_another_shape_is_one_line(
    sizes: tuple[int, ...], others: dict[str, Tensor], message: str, clip_folder: Path, tmp_path: Path
) -> None:
    write_head(tmp_path / "head.safetensors", sizes, **others)
    with pytest.raises(TrainerUsageError, match=re.escape(message)):
        judge("aesthetics", {"folder": str(clip_folder), "head": str(tmp_path / "head.safetensors")}, [])
    (tmp_path / "head.pth").write_bytes(b"")
    with pytest.raises(TrainerUsageError, match=r"expected a file \*\.safetensors"):
        judge("aesthetics", {"folder": str(clip_folder), "head": str(tmp_path / "head.pth")}, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "model_type 'siglip', expected 'clip'"),
        ({"projection_dim": 10**6}, "config.json asks for"),
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers=1000000: expected a whole"),
    ],
)
def test_a_model_of_another_kind_or_size_is_one_line(
    changes: dict[str, Any], message: str, clip_folder: Path, tmp_path: Path
) -> None:
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((TrainerError, EngineError), match=re.escape(message)):
        judge("clip_similarity", {"folder": str(tmp_path)}, [])


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainerUsageError, match=r"`rewards.pick_score.folder` = .*nothing: there is no such folder"):
        judge("pick_score", {"folder": str(tmp_path / "nothing")}, [])
    with pytest.raises(TrainerUsageError, match=r"rewards\.pick_score\.folder: Field required"):
        judge("pick_score", {}, [])


def test_quoted_text_and_agreement() -> None:
    assert quoted_text('a sign that says "New York", and “here”') == "New York here"
    assert quoted_text("a sign") == ""
    assert agreement("NEW  york", "New York") == 1.0
    assert agreement("New Fork", "New York") == pytest.approx(6 / 7)
    assert agreement("", "New York") == 0.0
    assert agreement("something much longer", "abc") == 0.0


def test_without_an_engine_written_text_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    with pytest.raises(TrainerUsageError, match=r"rewards.written_text needs .*: install longrl-omni\[reading\]"):
        load_generation_rewards({"written_text": 1.0})


@pytest.mark.long
def test_written_text_is_read() -> None:
    """With the real engine, on pictures of letters."""
    pytest.importorskip("rapidocr")
    from PIL import Image, ImageDraw, ImageFont

    def write(text: str) -> Tensor:
        image = Image.new("RGB", (320, 96), (250, 240, 200))
        ImageDraw.Draw(image).text((20, 20), text, fill=(20, 20, 120), font=ImageFont.load_default(48))
        return torch.tensor(list(image.tobytes())).view(96, 320, 3).permute(2, 0, 1) / 255

    asked = [
        PictureRequest(prompt=prompt, picture=write(text))
        for prompt, text in (('a sign "Hello"', "HELLO"), ('a sign "Hello"', "WORLD"), ("no text", "HELLO"))
    ]
    asked.append(PictureRequest(prompt='a sign "Hello"', picture=torch.full((3, 96, 320), 0.5)))
    right, wrong, none, empty = judge("written_text", {}, asked)
    assert right == 1.0
    assert wrong is not None
    assert wrong < 0.6
    assert none is None
    assert empty == 0.0
