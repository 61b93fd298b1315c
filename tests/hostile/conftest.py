"""What the tests here share: the two commands, each loaded once and forked for every run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "longvideo-reason-data" / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "longrl-omni" / "tests" / "generation"))
sys.path.insert(0, str(Path(__file__).parent))

from hostile_runs import Forks, Run

DATA_LOADS = (
    "longvideo_reason_data.exchange.exporting",
    "longvideo_reason_data.pipeline.build",
    "longvideo_reason_data.pipeline.filter",
    "longvideo_reason_data.view.page",
    "openai.resources.chat",
)
LONGRL_LOADS = (
    "diffusers",
    "longrl.commands.encode",
    "longrl.commands.recipes",
    "longrl.launch.start",
    "longrl.rehearsal.run",
    "longrl_trainer.grpo",
    "longrl_trainer.sft",
    "mrsp_engine.families.qwen.qwen2_5_vl",
    "mrsp_engine.families.vila.policy",
)


@pytest.fixture(scope="session")
def run_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run `longvideo-data`."""
    forks = Forks("longvideo_reason_data.cli", DATA_LOADS, tmp_path_factory.mktemp("data"))
    yield forks.run
    forks.close()


@pytest.fixture(scope="session")
def run_longrl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run `longrl`."""
    forks = Forks("longrl.cli", LONGRL_LOADS, tmp_path_factory.mktemp("longrl"))
    yield forks.run
    forks.close()
