"""The README's example runs when it is saved as a file, with the README's recipe beside it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SMALLER = {"steps = 100": "steps = 1", "group_size = 8": "group_size = 2", "num_frames = 256": "num_frames = 4"}


@pytest.mark.slow
def test_the_example_runs_as_a_file_with_its_recipe(world, tmp_path):
    text = README.read_text()
    (code,), (recipe,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "toml"))
    for printed, smaller in SMALLER.items():
        assert printed in recipe
        recipe = recipe.replace(printed, smaller)
    # vLLM isn't needed by this package alone.
    recipe += '\n[sampler]\nengine = "transformers"\n'
    recipe = f"prompts_per_step = 1\nmax_response_tokens = 8\n{recipe}"
    shutil.copytree(world.model, tmp_path / "runs" / "sft" / "model")
    shutil.copytree(world.dataset, tmp_path / "dataset")
    (tmp_path / "grpo.toml").write_text(recipe)
    (tmp_path / "example.py").write_text(code)
    command = [sys.executable, "example.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "runs/grpo/model" in ran.stdout
    assert (tmp_path / "runs" / "grpo" / "model" / "model.safetensors").is_file()
