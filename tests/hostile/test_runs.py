"""Every command that reads a run, on runs and evaluations in which a file is not what it should be."""

import json
import shutil
from pathlib import Path

import pytest
from damages import DAMAGES
from hostile_datasets import fill_outside, write_sound_dataset
from hostile_runs import Run, require_orderly, snapshot

from longrl_omni.generation.pictures.model import create_pictures_policy
from longrl_omni.generation.pictures.prompt_files import (
    HELD_OUT_NAME,
    PROMPTS_NAME,
    PictureCaptionSettings,
    choose_captions,
    write_captions,
)
from mrsp_engine.testing.hostile_checkpoints import HOSTILE_KIND
from mrsp_engine.tiny.published import write_published

pytestmark = pytest.mark.long

QUESTION = {
    "question_id": "q1",
    "question": "What is carried?",
    "options": ["A. a lamp", "B. a chair", "C. a cup", "D. a hat"],
    "answer": "A",
    "duration": "short",
    "domain": "Knowledge",
    "task_type": "Counting Problem",
}


QUESTIONS = """
[model]
folder = "ROOT/model"
store = "ROOT/store"
[data]
dataset = "ROOT/dataset"
split = "train_rl"
num_frames = 2
"""
SFT = """
output = "output"
epochs = 1
rows_per_step = 4
learning_rate = 1e-4
checkpoint_every_steps = 1
"""
GRPO = """
output = "output"
steps = 1
group_size = 2
prompts_per_step = 1
max_response_tokens = 4
learning_rate = 1e-4
checkpoint_every_steps = 1
"""
PICTURES = f"""
output = "output"
prompts = "ROOT/{PROMPTS_NAME}"
held_out_prompts = "ROOT/{HELD_OUT_NAME}"
held_out_reward = "likeness"
steps = 1
prompts_per_step = 1
group_size = 2
learning_rate = 1e-3
evaluation_samples = 1
checkpoint_every_steps = 1
window_steps = 1
[model]
folder = "ROOT/pictures_model"
[rewards]
jpeg_size = 1.0
[sampling]
steps = 3
samples_per_pass = 4
"""
RECIPES = {
    "sft": SFT + QUESTIONS,
    "grpo": GRPO + QUESTIONS + '[sampler]\nengine = "transformers"\n',
    "pictures": PICTURES,
}
RUN_FILES: dict[str, tuple[str, ...]] = {
    "sft": ("settings.json", "metrics.jsonl", "questions.json", "result.json", "checkpoints/*/*"),
    "grpo": ("rollouts.jsonl",),
    "benchmark": ("*.json", "*.jsonl"),
    "pictures": ("*.json", "*.jsonl", "checkpoints/*/*"),
}
"""What is damaged, in each kind of run. How SFT goes on with a damaged run is in the trainer's own tests."""

QUICKSTART = ["quickstart", "--recipe", str(Path(__file__).parents[2] / "apps" / "tests" / "tiny_quickstart.toml")]


class Runs:
    """Finished runs to be copied, and the commands that read them.

    Args:
        root: Where they are made.
        run_longrl: Runs a command.
    """

    def __init__(self, root: Path, run_longrl: Run) -> None:
        self.root = root
        write_sound_dataset(root / "dataset")
        write_published(HOSTILE_KIND, root / "model")
        films = sorted((root / "dataset" / "videos").glob("held_out-*.mp4"))
        (root / "exam" / "data").mkdir(parents=True)
        (root / "exam" / "videomme.json").write_text(json.dumps([QUESTION | {"videoID": films[0].stem}]))
        shutil.copy(films[0], root / "exam" / "data")
        create_pictures_policy(seed=0).save(root / "pictures_model")
        captions, held_out = choose_captions(PictureCaptionSettings(train_captions=2, held_out_captions=1), seed=0)
        write_captions(root, captions, held_out)
        for kind, recipe in RECIPES.items():
            (root / f"{kind}.toml").write_text(recipe.replace("ROOT", str(root)))
        for name in RUN_FILES:
            for words in (self.make(name, root / name), self.make(name, root / name)):  # a finished one only reports
                ending = run_longrl(words)
                require_orderly(ending)
                assert ending.status == 0, ending

    def make(self, name: str, output: Path) -> list[str]:
        """The command that makes a run, or goes on with it."""
        if name == "benchmark":
            benchmark = ["--benchmark", "videomme", "--path", self.root / "exam", "--table", "videomme.json"]
            shown = ["--frames", "2", "--output", output]
            asked = ["--direct-tokens", "4", "--thinking-tokens", "4", "--sampler.engine", "transformers"]
            model = ["--model.folder", self.root / "model", "--model.store", self.root / "store"]
            return ["evaluate", *map(str, [*benchmark, *shown, *asked, *model])]
        stage = "generate-grpo" if name == "pictures" else name
        return [stage, str(self.root / f"{name}.toml"), "--output", str(output)]

    def commands(self, name: str, run: Path, output: Path) -> dict[str, list[str]]:
        """The commands that read a run of this kind, the one last that may go on with it."""
        make = [*self.make(name, run), *([] if name == "benchmark" else ["--steps", "2"])]
        if name == "benchmark":
            return {"compare": ["compare", str(run), str(self.root / name)], "make": make}
        look = {"watch": ["watch", str(run)], "report": ["report", str(run)]}
        if name == "sft":
            export = ["export", str(run), "--output", str(output)]
            return look | {"export": [*export, "--step", "1"], "export the last": export}
        return look | {"make": make}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, run_longrl: Run) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), run_longrl)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_with_a_damaged_file(name: str, damage: str, runs: Runs, run_longrl: Run, tmp_path: Path) -> None:
    found = sorted({path for pattern in RUN_FILES[name] for path in (runs.root / name).glob(pattern)})
    assert found
    for path in found:
        own = path.relative_to(runs.root / name)
        place = tmp_path / "-".join(own.parts)
        run, outside = place / "run", place / "outside"
        shutil.copytree(runs.root / name, run)
        fill_outside(outside)
        DAMAGES[damage](run / own, outside)
        untouched, refused = snapshot(outside), False
        for command, words in runs.commands(name, run, place / "output").items():
            before = snapshot(run)
            ending = run_longrl(words)
            try:
                require_orderly(ending)
                assert "private" not in ending.output
                assert snapshot(outside) == untouched
                if command not in ("report", "make"):
                    assert snapshot(run) == before
            except AssertionError as error:
                raise AssertionError(f"{command} with {own} {damage}: {error}") from error
            refused |= ending.status != 0
        assert refused, f"nobody minds {own} {damage}"
        shutil.rmtree(place)


def test_the_page_of_a_sound_run_is_looked_at(runs: Runs, run_longrl: Run) -> None:
    ending = run_longrl(["watch", str(runs.root / "grpo")])
    require_orderly(ending)
    assert ending.status == 0
    assert "is_evidence" in ending.output, ending  # frames of a group


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory, run_longrl: Run) -> Path:
    """The folder of a finished quickstart."""
    folder = tmp_path_factory.mktemp("quickstart") / "output"
    ending = run_longrl([*QUICKSTART, "--output", str(folder)])
    assert ending.status == 0, ending
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["stages/evaluate-sft.json", "evaluations/sft/4-frames.json", "sft/metrics.jsonl"])
def test_a_quickstart_with_a_damaged_file(
    name: str, damage: str, quickstart: Path, run_longrl: Run, tmp_path: Path
) -> None:
    output, outside = tmp_path / "output", tmp_path / "outside"
    shutil.copytree(quickstart, output)
    fill_outside(outside)
    DAMAGES[damage](output / name, outside)
    before = snapshot(outside)
    ending = run_longrl([*QUICKSTART, "--output", str(output)])
    # It says which stages it does again, and why.
    require_orderly(ending, most_lines=12)
    assert snapshot(outside) == before
