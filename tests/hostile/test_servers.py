"""A build that asks a language model's server, on every way in which a server misbehaves."""

from pathlib import Path

import pytest
from hostile_datasets import write_sound_dataset
from hostile_runs import KEY, Run, require_orderly
from hostile_servers import BEHAVIOURS, ENDLESS, HostileServer

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    write_sound_dataset(folder)
    return sorted((folder / "videos").iterdir())[0]


@pytest.mark.parametrize("lists_models", [True, False], ids=["asked", "listing"])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_build_ends_in_one_line(name: str, lists_models: bool, video: Path, run_data: Run, tmp_path: Path) -> None:
    patience = "1" if name in ENDLESS else "15"
    with HostileServer(BEHAVIOURS[name].act, lists_models=lists_models) as server:
        words = ["build", "--videos", video, "--output", tmp_path / "dataset", "--base-url", server.base_url]
        words += ["--model", "m", "--filter", "none", "--num-attempts", "1", "--timeout-seconds", patience]
        ending = run_data(words)
        assert server.received
    require_orderly(ending)
    assert ending.status != 0  # no behaviour amounts to a dataset
    said = ending.output + ending.error
    for path in (tmp_path / "dataset").rglob("*"):
        if path.is_file() and path.suffix != ".mp4":
            said += path.read_text(errors="replace")
    assert KEY not in said
