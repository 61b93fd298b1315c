"""Importing is cheap and portable: nothing heavy is loaded that a machine may not have.

Every module of a package is imported in a fresh process, and the loaded modules are checked. So a package can be
imported where vLLM isn't installed, and datasets can be made where torch isn't.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = ("vllm", "flash_attn", "deepspeed", "ray")
TENSORS = ("torch", "transformers", "mrsp_engine", "longrl_trainer")
NEVER_LOADED = {
    "longrl_files": (*OPTIONAL, *TENSORS, "longvideo_reason_data", "mrsp_engine"),
    "longvideo_reason_data": OPTIONAL + TENSORS,
    "mrsp_engine": (*OPTIONAL, "longvideo_reason_data"),
    "longrl_trainer": (*OPTIONAL, "longrl_omni", "longrl"),
    "longrl_omni": (*OPTIONAL, "longrl"),
    "longrl": OPTIONAL,
}

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
loaded = {name.partition(".")[0] for name in sys.modules}
print(len(names), *sorted(loaded.intersection(sys.argv[2:])))
"""


def run_python(code: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_package_is_looked_at():
    in_tree = {path.parent.name for path in ROOT.glob("packages/*/src/*/__init__.py")} | {"longrl"}
    assert set(NEVER_LOADED) == in_tree


@pytest.mark.slow
@pytest.mark.parametrize("package", NEVER_LOADED)
def test_importing_every_module_loads_nothing_optional(package):
    num_modules, *loaded = run_python(IMPORT_EVERYTHING, package, *NEVER_LOADED[package]).split()
    assert int(num_modules) > 5
    assert loaded == []


def test_the_commands_modules_load_no_torch():
    # Help must appear at once, and mistakes in a recipe are reported before a model library is loaded.
    modules = "longrl.cli, longrl_trainer.config.stages"
    code = f"import sys, {modules}; print(*{{'torch', 'transformers', 'vllm', 'av'}}.intersection(sys.modules))"
    assert run_python(code).split() == []
