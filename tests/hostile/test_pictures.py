"""The commands that draw pictures, on pipelines and prompts that nobody should trust."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damages import DAMAGES, Damage, text
from hostile_datasets import ESCAPES, fill_outside
from hostile_runs import Ending, Run, require_orderly, snapshot
from tiny_pipelines import write_tiny_pipeline

from longrl_omni.generation.pictures.model import create_pictures_policy

pytestmark = pytest.mark.long

PROMPT = "two red circles left of one blue square"
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
)
RECIPE = """
output = "output"
prompts = "prompts.txt"
[model]
folder = "model"
[sampling]
steps = 2
"""
TRAINING_RECIPE = """
output = "output"
prompts = "prompts.txt"
held_out_prompts = "prompts.txt"
held_out_reward = "colourfulness"
evaluation_samples = 1
steps = 1
prompts_per_step = 1
group_size = 2
learning_rate = 1e-3
window_steps = 1
[model]
folder = "model"
[rewards]
jpeg_size = 1.0
[sampling]
steps = 3
"""


def _merge(**values: Any) -> Damage:
    def change(path: Path, outside: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _index(**files: str) -> Damage:
    """A list of weights in place of the weights themselves."""

    def change(path: Path, outside: Path) -> None:
        weights = path.parent / "diffusion_pytorch_model.safetensors"
        weights.rename(path.parent / "elsewhere.safetensors")
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))

    return change


CONFIGURED: dict[str, tuple[str, Damage]] = {
    "a part of another library": ("model_index.json", _merge(vae=["antigravity", "Flight"])),
    "a part of no library": ("model_index.json", _merge(vae=[])),
    "a part that is no class": ("model_index.json", _merge(transformer=["diffusers", "utils"])),
    "another pipeline": ("model_index.json", _merge(_class_name=ESCAPES * 100)),
    "a pipeline by number": ("model_index.json", _merge(_class_name=5)),
    "a million layers": ("transformer/config.json", _merge(num_layers=10**6)),
    "wide": ("transformer/config.json", _merge(num_attention_heads=10**6)),
    "negative": ("transformer/config.json", _merge(attention_head_dim=-8)),
    "a place for every pixel": ("transformer/config.json", _merge(pos_embed_max_size=10**5)),
    "many words": ("text_encoder/config.json", _merge(vocab_size=10**9)),
    "deep text": ("text_encoder_3/config.json", _merge(num_layers=10**6)),
    "channels in words": ("vae/config.json", _merge(block_out_channels=["many", "more"])),
    "a tokenizer's code": (
        "tokenizer/tokenizer_config.json",
        _merge(auto_map={"AutoTokenizer": ["code.Tokenizer", None]}, tokenizer_class="Mine"),
    ),
    "weights elsewhere": (
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        _index(weight="../../outside/secret.json"),
    ),
}
"""A file, and what is done to it."""
HARMLESS = {
    "scheduler/scheduler_config.json something else",  # diffusers' defaults
    "tokenizer/tokenizer.json a folder",  # the vocabulary is there in another form, too
    "a tokenizer's code",  # which isn't run
}
PROMPT_FILES: dict[str, Damage] = {
    **DAMAGES,
    "escapes": text(ESCAPES * 1000),
    "no text": text(b"\xff\xfe"),
    "nothing": text(""),
    "too long a prompt": text("w " * 10**6),
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    write_tiny_pipeline(root / "model")
    create_pictures_policy(seed=0).save(root / "pictures")
    (root / "prompts.txt").write_text(PROMPT + "\n")
    (root / "letters.txt").write_text("a b\n")  # few tokens
    (root / "generate.toml").write_text(RECIPE)
    (root / "generate-grpo.toml").write_text(TRAINING_RECIPE)
    return root


COMMANDS = ("generate", "generate-grpo")
Draw = Callable[..., Ending]


@pytest.fixture
def draw(sound: Path, tmp_path: Path, run_longrl: Run) -> Draw:
    """Run a command with some places changed."""

    def run(command: str, *, model: Path = sound / "model", prompts: Path = sound / "letters.txt") -> Ending:
        places = ["--model.folder", model, "--prompts", prompts, "--output", tmp_path / command]
        places += [] if command == "generate" else ["--held-out-prompts", prompts]
        ending = run_longrl([command, str(sound / f"{command}.toml"), *map(str, places)])
        require_orderly(ending)
        return ending

    return run


@pytest.mark.parametrize(("model", "prompts"), [("model", "letters.txt"), ("pictures", "prompts.txt")])
def test_sound_ones_pass(model: str, prompts: str, sound: Path, draw: Draw) -> None:
    for command in COMMANDS:
        ending = draw(command, model=sound / model, prompts=sound / prompts)
        assert ending.status == 0, ending


@pytest.mark.parametrize(
    ("name", "damage"),
    [pytest.param(file, DAMAGES[damage], id=f"{file} {damage}") for file in FILES for damage in DAMAGES]
    + [pytest.param(file, damage, id=name) for name, (file, damage) in CONFIGURED.items()],
)
def test_pipelines(
    name: str,
    damage: Damage,
    sound: Path,
    draw: Draw,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(sound / "model", model)
    fill_outside(outside)
    damage(model / name, outside)
    before = snapshot(model), snapshot(outside)
    for command in COMMANDS:
        ending = draw(command, model=model)
        assert ending.status != 0 or request.node.callspec.id in HARMLESS, (command, ending)
    assert (snapshot(model), snapshot(outside)) == before


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_prompts(name: str, sound: Path, draw: Draw, tmp_path: Path) -> None:
    prompts, outside = tmp_path / "prompts.txt", tmp_path / "outside"
    shutil.copy(sound / "prompts.txt", prompts)
    fill_outside(outside)
    PROMPT_FILES[name](prompts, outside)
    for command in COMMANDS:
        ending = draw(command, model=sound / "pictures", prompts=prompts)
        # A file that the user names may itself be a link.
        assert (ending.status == 0) == (name == "a link"), (command, ending)
