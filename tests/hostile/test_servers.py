"""A build and a filter that ask a language model's server, on every way in which a server misbehaves."""

import shutil
from pathlib import Path

import pytest
from hostile_datasets import write_sound_dataset
from hostile_runs import KEY, Run, require_orderly
from hostile_servers import BEHAVIOURS, ENDLESS, HostileServer

from longvideo_reason_data.records.record import read_records

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    write_sound_dataset(folder)
    return folder


@pytest.mark.parametrize("lists_models", [True, False], ids=["asked", "listing"])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_build_ends_in_one_line(name: str, lists_models: bool, sound: Path, run_data: Run, tmp_path: Path) -> None:
    with HostileServer(BEHAVIOURS[name].act, lists_models=lists_models) as server:
        video = sorted((sound / "videos").iterdir())[0]
        words = ["build", "--videos", video, "--output", tmp_path / "dataset", "--filter", "none"]
        ending = run_data([*words, *_asking(server, name)])
        assert server.received
    require_orderly(ending)
    assert ending.status != 0  # no behaviour amounts to a dataset
    assert KEY not in ending.output + ending.error + _written(tmp_path / "dataset")


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_filter_ends_in_one_line(name: str, sound: Path, run_data: Run, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(sound, dataset)
    with HostileServer(BEHAVIOURS[name].act) as server:
        ending = run_data(["filter", dataset, *_asking(server, name)])
        assert server.received
    require_orderly(ending)
    assert KEY not in ending.output + ending.error + _written(dataset)
    # Whatever a server says, no question is lost: those that are dropped stay in the file of all of them.
    assert len(read_records(dataset / "unfiltered.parquet")) == len(read_records(sound / "records.parquet"))


def _asking(server: HostileServer, name: str) -> list[str]:
    patience = "1" if name in ENDLESS else "15"
    return ["--base-url", server.base_url, "--model", "m", "--num-attempts", "1", "--timeout-seconds", patience]


def _written(folder: Path) -> str:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4")
    return "".join(path.read_text(errors="replace") for path in paths)
