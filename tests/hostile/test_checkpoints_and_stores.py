"""Every `longrl` command that reads a checkpoint, a store or a dataset, on those that nobody should trust."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hostile_datasets import HOSTILE_DATASETS, write_sound_dataset
from hostile_datasets import fill_outside as fill_beside_dataset
from hostile_runs import Ending, Run, require_orderly, snapshot

from mrsp_engine.testing.hostile_checkpoints import (
    HOSTILE_CHECKPOINTS,
    HOSTILE_KIND,
    HOSTILE_PARTS,
    HOSTILE_PARTS_KIND,
)
from mrsp_engine.testing.hostile_stores import DAMAGED_ENTRIES, HOSTILE_STORES
from mrsp_engine.testing.hostile_stores import fill_outside as fill_beside_store
from mrsp_engine.tiny.published import write_published

ENCODE = ["encode", "{video}", "--model", "{model}", "--store", "{store}", "--num-frames", "2"]
SFT = [
    *("sft", "{recipe}", "--model.folder", "{model}", "--model.store", "{store}", "--data.dataset", "{dataset}"),
    *("--output", "{output}/sft"),
]
GRPO = [
    *("grpo", "{grpo}", "--model.folder", "{model}", "--model.store", "{store}", "--data.dataset", "{dataset}"),
    *("--output", "{output}/grpo"),
]
EVALUATE = [
    *("evaluate", "--model.folder", "{model}", "--model.store", "{store}", "--data.dataset", "{dataset}"),
    *("--data.split", "train_rl", "--data.num-frames", "2", "--max-response-tokens", "4", "--limit", "1"),
    *("--sampler.engine", "transformers", "--output", "{output}/accuracy.json"),
]
LOOK = [
    *("launch", "{recipe}", "--gpus", "999", "--model.folder", "{model}", "--model.store", "{store}"),
    *("--data.dataset", "{dataset}", "--output", "{output}/look"),
]
"""Nothing is started, since no machine has as many GPUs, but everything is looked at."""
MOST_PROBLEMS = 8
REHEARSE = [
    *("rehearse", "{recipe}", "--model", "{model}", "--gpus", "1", "--layers", "1", "--rows", "1"),
    *("--response-tokens", "4"),
]
INIT = ["init", "{dataset}", "--model", "{model}", "--output", "{output}/init"]
TINY_MODEL = [
    *("tiny-model", "--output", "{output}/tiny", "--dataset", "{dataset}", "--hidden-size", "64"),
    *("--num-heads", "2", "--num-key-value-heads", "1", "--num-layers", "1", "--vocabulary-size", "512"),
]
ON_CHECKPOINTS = {
    "encode": ENCODE,
    "sft": SFT,
    "grpo": GRPO,
    "evaluate": EVALUATE,
    "launch": LOOK,
    "rehearse": REHEARSE,
    "init": INIT,
    "plan": ["plan", "--model", "{model}", "--num-frames", "4", "--gpus", "1"],
}
READING_SIZES = ("plan", "rehearse", "init")
NOT_REHEARSED = ("tokenizer", "chat_template", "generation_config", ".safetensors", "pytorch_model", ".py")
"""Files that a rehearsal doesn't look for."""
TRAINED_FROM = ("records", "shards", "videos")
ON_STORES = {
    "stats": ["store", "stats", "{store}"],
    "verify": ["store", "verify", "{store}"],
    "prune": ["store", "prune", "{store}", "--keep", "1MB"],
    "encode": ENCODE,
    "launch": LOOK,
}
RECIPE = """
output = "output"
epochs = 1
rows_per_step = 1
learning_rate = 1e-4
[model]
folder = "model"
store = "store"
[data]
dataset = "dataset"
split = "train_rl"
num_frames = 2
"""
GRPO_RECIPE = (
    RECIPE.replace("epochs = 1\n", "steps = 1\ngroup_size = 2\nmax_response_tokens = 4\n").replace(
        "rows_per_step", "prompts_per_step"
    )
    + '[sampler]\nengine = "transformers"\n'
)

pytestmark = pytest.mark.long
Words = Callable[..., list[str]]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and two checkpoints that are as they should be."""
    root = tmp_path_factory.mktemp("sound")
    write_sound_dataset(root / "dataset")
    for kind in (HOSTILE_KIND, HOSTILE_PARTS_KIND):
        write_published(kind, root / kind)
    (root / "recipe.toml").write_text(RECIPE)
    (root / "grpo.toml").write_text(GRPO_RECIPE)
    return root


@pytest.fixture
def fill(sound: Path, tmp_path: Path) -> Words:
    """Fill in the places of a command."""

    def words(command: Sequence[str], **places: Path) -> list[str]:
        usual = {
            "video": sorted((sound / "dataset" / "videos").iterdir())[0],
            "model": sound / HOSTILE_KIND,
            "dataset": sound / "dataset",
            "recipe": sound / "recipe.toml",
            "grpo": sound / "grpo.toml",
            "store": tmp_path / "new store",
            "output": tmp_path / "output",
        }
        return [word.format(**(usual | places)) for word in command]

    return words


def require(command: Sequence[str], ending: Ending) -> None:
    """Hold an ending to the promise; a look lists all that is wrong, and what the node has."""
    require_orderly(ending, most_lines=MOST_PROBLEMS if command is LOOK else 1)


def test_sound_ones_pass(fill: Words, run_longrl: Run, sound: Path) -> None:
    for command in (*ON_CHECKPOINTS.values(), *ON_STORES.values()):
        ending = run_longrl(fill(command))
        require(command, ending)
        assert (ending.status == 0) == (command is not LOOK), ending


@pytest.mark.parametrize(
    ("kind", "name"),
    [(HOSTILE_KIND, name) for name in HOSTILE_CHECKPOINTS] + [(HOSTILE_PARTS_KIND, name) for name in HOSTILE_PARTS],
)
def test_checkpoints(kind: str, name: str, sound: Path, fill: Words, run_longrl: Run, tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(sound / kind, folder)
    (HOSTILE_CHECKPOINTS if kind == HOSTILE_KIND else HOSTILE_PARTS)[name](folder, outside)
    before, published = (snapshot(folder), snapshot(outside)), snapshot(sound / kind)
    changed = {name for name in {*before[0], *published} if before[0].get(name) != published.get(name)}
    for command, words in ON_CHECKPOINTS.items():
        if command == "rehearse" and all(any(part in name for part in NOT_REHEARSED) for name in changed):
            continue
        ending = run_longrl(fill(words, model=folder))
        require(words, ending)
        assert ending.status != 0 or command in READING_SIZES, (command, ending)
    assert (snapshot(folder), snapshot(outside)) == before


@pytest.mark.parametrize("name", [*HOSTILE_STORES, *DAMAGED_ENTRIES])
def test_stores(name: str, fill: Words, run_longrl: Run, tmp_path: Path) -> None:
    for command, words in ON_STORES.items():
        place = tmp_path / command
        place.mkdir()
        folder, outside = place / "store", place / "outside"
        fill_beside_store(outside)
        (HOSTILE_STORES | DAMAGED_ENTRIES)[name](folder, outside)
        before = snapshot(folder), snapshot(outside)
        ending = run_longrl(fill(words, store=folder))
        require(words, ending)
        assert snapshot(outside) == before[1]
        if name in HOSTILE_STORES or command in ("stats", "verify", "launch"):
            assert snapshot(folder) == before[0]
        if name in HOSTILE_STORES:
            assert ending.status != 0, ending


@pytest.mark.parametrize("name", HOSTILE_DATASETS)
def test_training_on_datasets(name: str, sound: Path, fill: Words, run_longrl: Run, tmp_path: Path) -> None:
    dataset, outside = tmp_path / "dataset", tmp_path / "outside"
    shutil.copytree(sound / "dataset", dataset)
    fill_beside_dataset(outside)
    HOSTILE_DATASETS[name](dataset, outside)
    before, whole = (snapshot(dataset), snapshot(outside)), snapshot(sound / "dataset")
    changed = {path for path in {*before[0], *whole} if before[0].get(path) != whole.get(path)}
    matters = any(path.startswith(TRAINED_FROM) for path in changed)
    for words in (SFT, GRPO, EVALUATE, LOOK, INIT, TINY_MODEL) if matters else (EVALUATE, INIT):
        require(words, run_longrl(fill(words, dataset=dataset)))
    assert (snapshot(dataset), snapshot(outside)) == before
