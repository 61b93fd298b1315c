"""A build, a filter and a judge that ask a language model's server, on every way in which a server misbehaves."""

import shutil
from pathlib import Path

import pytest
from hostile_datasets import write_sound_dataset
from hostile_runs import KEY, Run, require_orderly
from hostile_servers import BEHAVIOURS, ENDLESS, HostileServer

from longvideo_reason_data.records.record import read_records
from mrsp_engine.testing.hostile_checkpoints import HOSTILE_KIND
from mrsp_engine.tiny.published import write_published

GRPO_RECIPE = """
output = "output"
steps = 1
group_size = 2
prompts_per_step = 1
max_response_tokens = 4
learning_rate = 1e-4
[model]
folder = "{root}/model"
store = "{root}/store"
[data]
dataset = "{dataset}"
split = "train_rl"
num_frames = 2
[sampler]
engine = "transformers"
"""

JUDGES = [name for place, name in enumerate(BEHAVIOURS) if place % 3 == 0]
"""A judge is asked through the same client, so a part of them is enough."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    write_sound_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def training(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of GRPO without rewards."""
    root = tmp_path_factory.mktemp("training")
    write_published(HOSTILE_KIND, root / "model")
    recipe = root / "recipe.toml"
    recipe.write_text(GRPO_RECIPE.format(root=root, dataset=sound))
    return recipe


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


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_refused_in_one_line(name: str, training: Path, run_longrl: Run, tmp_path: Path) -> None:
    output, patience = tmp_path / "run", "1" if name in ENDLESS else "15"
    with HostileServer(BEHAVIOURS[name].act) as server:
        judge = f'[rewards.judge]\nweight = 1.0\nbase_url = "{server.base_url}"\nmodel = "model"\nnum_attempts = 1\n'
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(f"{training.read_text()}\n{judge}timeout_seconds = {patience}\n")
        ending = run_longrl(["grpo", recipe, "--output", output])
        assert server.received, ending
    require_orderly(ending)
    assert ending.status != 0  # no behaviour amounts to a judge
    assert KEY not in ending.output + ending.error + _written(output)


def _asking(server: HostileServer, name: str) -> list[str]:
    patience = "1" if name in ENDLESS else "15"
    return ["--base-url", server.base_url, "--model", "m", "--num-attempts", "1", "--timeout-seconds", patience]


def _written(folder: Path) -> str:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4")
    return "".join(path.read_text(errors="replace") for path in paths)
