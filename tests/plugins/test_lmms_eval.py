"""The plug-in for lmms-eval passes its own tests in an environment of its own, where lmms-eval is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import transformers

PLUGIN = Path(__file__).parents[2] / "plugins" / "lmms-eval-longrl"
INSTALL_SECONDS, RUN_SECONDS = 600, 500


@pytest.mark.long
@pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)
def test_it_evaluates_one_of_lmms_evals_tasks(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv isn't installed")
    python = tmp_path / "environment" / "bin" / "python"
    versions = [f"torch=={torch.__version__.partition('+')[0]}", f"transformers=={transformers.__version__}"]
    for command in (
        [uv, "venv", "--quiet", "--python", "3.11", str(tmp_path / "environment")],
        [uv, "pip", "install", "--quiet", "--python", str(python), str(PLUGIN), *versions, "pytest"],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS, cwd=tmp_path)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"lmms-eval can't be installed here ({type(error).__name__})")
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", str(PLUGIN)]
    done = subprocess.run(
        [*command, str(PLUGIN / "tests")],
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 passed" in done.stdout
