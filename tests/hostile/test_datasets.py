"""Every command that reads a dataset, on every dataset that nobody should trust."""

import shutil
from pathlib import Path

import pytest
from hostile_datasets import HOSTILE_DATASETS, fill_outside, write_sound_dataset
from hostile_runs import Run, require_orderly, snapshot

NOWHERE = "http://127.0.0.1:9/v1"
NO_SERVER = "no server answers there"  # so far comes a filter that finds nothing wrong
COMMANDS = {
    "check": ["check", "{dataset}"],
    "stats": ["stats", "{dataset}"],
    "view": ["view", "{dataset}", "--thumbnails", "2"],
    "view elsewhere": ["view", "{dataset}", "--output", "{output}/view.html", "--thumbnails", "0"],
    "export": ["export", "{dataset}", "--to", "jsonl"],
    "export elsewhere": ["export", "{dataset}", "--to", "hf", "--output", "{output}/export"],
    "filter": ["filter", "{dataset}", "--base-url", NOWHERE, "--model", "m", "--num-attempts", "1"],
}
# What changes nothing that any of these commands reads or writes.
HARMLESS = {"shards is a linked folder"}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    write_sound_dataset(folder)
    return folder


@pytest.mark.slow
def test_a_sound_dataset_passes(sound: Path, run_data: Run, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(sound, dataset)
    for name, words in COMMANDS.items():
        ending = run_data([word.format(dataset=dataset, output=tmp_path / "output") for word in words])
        require_orderly(ending)
        assert (ending.status == 0) == (name != "filter"), (name, ending)


@pytest.mark.long
@pytest.mark.parametrize("name", HOSTILE_DATASETS)
def test_every_command_ends_in_one_line_and_touches_nothing_else(
    name: str, sound: Path, run_data: Run, tmp_path: Path
) -> None:
    refused = False
    for command, words in COMMANDS.items():
        place = tmp_path / command.replace(" ", "_")
        place.mkdir()
        dataset, outside = place / "dataset", place / "outside"
        shutil.copytree(sound, dataset)
        fill_outside(outside)
        HOSTILE_DATASETS[name](dataset, outside)
        before = snapshot(outside)
        ending = run_data([word.format(dataset=dataset, output=place / "output") for word in words])
        require_orderly(ending)
        assert snapshot(outside) == before
        pages = [path for path in place.rglob("*.html") if not path.is_symlink()]
        assert not any("private" in path.read_text(errors="replace") for path in pages)
        refused |= ending.status != 0 and NO_SERVER not in ending.error
        shutil.rmtree(place)
    assert refused or name in HARMLESS
