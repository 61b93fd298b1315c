"""Importing is cheap and portable: nothing heavy is loaded that a machine may not have.

Every module of a package is imported in a fresh process, after those of packages that it may use, and the loaded
modules are checked. So a package can be imported where vLLM is missing, and datasets can be made where torch is.
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

CHAINS = (["longrl_files", "longvideo_reason_data"], ["mrsp_engine", "longrl_trainer", "longrl_omni", "longrl"])
"""Packages that are imported one after the other in one process: what a later one may not load, no earlier one may."""

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

for name in sys.argv[1:]:
    package = importlib.import_module(name)
    modules = [module.name for module in pkgutil.walk_packages(package.__path__, name + ".")]
    for module in modules:
        importlib.import_module(module)
    print(name, len(modules), *sorted({loaded.partition(".")[0] for loaded in sys.modules}))
"""


def run_python(code: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_package_is_looked_at():
    in_tree = {path.parent.name for path in ROOT.glob("packages/*/src/*/__init__.py")} | {"longrl"}
    assert set(NEVER_LOADED) == {name for chain in CHAINS for name in chain} == in_tree


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=" ".join)
def test_importing_every_module_loads_nothing_optional(chain):
    lines = [line.split() for line in run_python(IMPORT_EVERYTHING, *chain).splitlines()]
    assert [name for name, *_ in lines] == chain
    for name, num_modules, *loaded in lines:
        assert int(num_modules) > 5
        assert set(loaded).isdisjoint(NEVER_LOADED[name]), name


def test_the_commands_modules_load_no_torch():
    # Help must appear at once, and mistakes in a recipe are reported before a model library is loaded.
    modules = "longrl.cli, longrl_trainer.config.stages"
    code = f"import sys, {modules}; print(*{{'torch', 'transformers', 'vllm', 'av'}}.intersection(sys.modules))"
    assert run_python(code).split() == []


def test_the_pages_of_runs_need_no_torch():
    # Whoever looks at a run that is going on leaves it the memory and the seconds.
    code = "import sys, longrl.watch.server, longrl.report.build; print('torch' in sys.modules)"
    assert run_python(code).split() == ["False"]
