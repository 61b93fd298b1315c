"""Every command that reads a recipe, on files that are none."""

import json
from pathlib import Path

import pytest
from damages import DAMAGES, Damage, text
from hostile_datasets import ESCAPES, fill_outside
from hostile_runs import Run, require_orderly, snapshot

pytestmark = pytest.mark.long

ESCAPED = json.dumps(ESCAPES)[1:-1]
NAMES = "\n".join(f"{name} = 1" for name in range(10**4))
RECIPES: dict[str, Damage] = {
    **{name: damage for name, damage in DAMAGES.items() if name != "a link"},  # one that the user names may be a link
    "nothing": text(""),
    "no text": text(b"\xff\xfe"),
    "a deep list": text(f"steps = {'[' * 10**5}{']' * 10**5}"),
    "deep tables": text("[" + ".".join(["a"] * 10**4) + "]\n"),
    "a long number": text(f"steps = {'9' * 10**5}"),
    "beyond all numbers": text("steps = 1e999\nlearning_rate = nan\n"),
    "many names": text(NAMES),
    "names with escapes": text("".join(f'"{number}{ESCAPED}" = 1\n' for number in range(100))),
    "a folder with escapes": text(f'output = "{ESCAPED}"\n[model]\nfolder = "a{ESCAPED}"\n'),
    "tables where values are expected": text("[output]\n[steps]\n[model.folder]\n[data.dataset]\n[world]\n[stages]\n"),
    "values where tables are expected": text('model = 1\ndata = "no"\nrewards = []\nworld = 3\nsft = 1\ngrpo = 2\n'),
    "long words": text(f'output = "{"x" * 10**6}"\n{"y" * 10**6} = 1\n'),
}
COMMANDS = {
    "sft": ["sft", "{recipe}"],
    "grpo": ["grpo", "{recipe}"],
    "evaluate": ["evaluate", "{recipe}"],
    "generate": ["generate", "{recipe}"],
    "generate-grpo": ["generate-grpo", "{recipe}"],
    "launch": ["launch", "{recipe}", "--device", "cpu", "--gpus", "1"],
    "doctor": ["doctor", "{recipe}"],
    "rehearse": ["rehearse", "{recipe}", "--gpus", "1"],
    "quickstart": ["quickstart", "--recipe", "{recipe}", "--output", "{output}"],
    "pictures": ["quickstart", "--world", "pictures", "--recipe", "{recipe}", "--output", "{output}"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_command_ends_in_one_line(name: str, run_longrl: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    fill_outside(outside)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 1\n")
    RECIPES[name](recipe, outside)
    before = snapshot(tmp_path)
    for command, words in COMMANDS.items():
        ending = run_longrl([word.format(recipe=recipe, output=tmp_path / "output") for word in words])
        try:
            require_orderly(ending)
            assert ending.status == 2
            assert snapshot(tmp_path) == before
        except AssertionError as error:
            raise AssertionError(f"{command}: {error}") from error
