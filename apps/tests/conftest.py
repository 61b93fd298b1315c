"""One finished tiny quickstart for all tests that read its folder, created with the command line."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for modules that several tests share

from forked_command import run_forked

TINY_RECIPE = Path(__file__).parent / "tiny_quickstart.toml"
SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Command:
    """The command in a separate process."""

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run it to the end."""
        with tempfile.TemporaryDirectory() as folder:
            return run_forked([str(word) for word in arguments], os.environ | SETTINGS, Path(folder))

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start it; its standard error stream is piped."""
        return subprocess.Popen(
            self.line(*arguments),
            env=os.environ | SETTINGS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Tests in the background of a shell ignore interrupts, and so would their child processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def line(self, *arguments: str | Path) -> list[str]:
        """The arguments."""
        return [sys.executable, "-m", "longrl.cli", *map(str, arguments)]


@dataclass(frozen=True)
class FinishedRun:
    """A quickstart's folder and its output."""

    folder: Path
    messages: str

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    def page(self) -> str:
        return (self.folder / "report.html").read_text()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    done = Command()("quickstart", "--recipe", TINY_RECIPE, "--output", folder)
    assert done.returncode == 0, done.stderr
    return FinishedRun(folder, done.stderr + done.stdout)


@pytest.fixture
def longrl() -> Command:
    return Command()
