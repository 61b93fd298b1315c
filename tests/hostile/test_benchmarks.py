"""Evaluation on published benchmarks that nobody should trust: tables, videos and subtitles."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damages import DAMAGES
from hostile_datasets import ESCAPES, fill_outside, write_sound_dataset
from hostile_runs import Run, require_orderly, snapshot

from mrsp_engine.testing.hostile_checkpoints import HOSTILE_KIND
from mrsp_engine.tiny.published import write_published

pytestmark = pytest.mark.long

TABLE, FILM, SUBTITLES = "videomme.json", "data/film.mp4", "subtitle/film.srt"
QUESTION = {
    "videoID": "film",
    "question_id": "q1",
    "question": "What is carried?",
    "options": ["A. a lamp", "B. a chair", "C. a cup", "D. a hat"],
    "answer": "A",
    "duration": "short",
    "domain": "Knowledge",
    "task_type": "Counting Problem",
}
HOSTILE_ROWS: dict[str, dict[str, Any]] = {
    "a video that leads up": {"videoID": "../../outside/secret"},
    "an absolute video": {"videoID": "/etc/hostname"},
    "a video of many folders": {"videoID": "x/" * 3000 + "film"},
    "a video with a zero": {"videoID": "film\0"},
    "a video with escapes": {"videoID": ESCAPES},
    "a video by number": {"videoID": 3},
    "an id with escapes": {"question_id": ESCAPES * 1000},
    "a question that is an object": {"question": {"text": "why?"}},
    "a question of a megabyte": {"question": "why? " * 200_000},
    "nested options": {"options": [[["a"]]] * 4},
    "a million options": {"options": ["A. a"] * 1_000_000},
    "a group with escapes": {"domain": ESCAPES * 100},
    "an answer that is none": {"answer": ESCAPES},
}
Ask = Callable[[Path], list[str]]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    write_sound_dataset(root / "dataset")
    write_published(HOSTILE_KIND, root / "model")
    for folder in ("data", "subtitle"):
        (root / "exam" / folder).mkdir(parents=True)
    shutil.copy(sorted((root / "dataset" / "videos").iterdir())[0], root / "exam" / FILM)
    (root / "exam" / SUBTITLES).write_text("1\n00:00:00,000 --> 00:00:02,000\nA lamp.\n")
    (root / "exam" / TABLE).write_text(json.dumps([QUESTION]))
    return root


@pytest.fixture
def ask(sound: Path, tmp_path: Path) -> Ask:
    """The command, for a folder of a benchmark."""

    def words(exam: Path) -> list[str]:
        model = [
            "--model.folder",
            sound / "model",
            "--model.store",
            sound / "store",
            "--sampler.engine",
            "transformers",
        ]
        how = ["--frames", "2", "--subtitles", "both", "--direct-tokens", "4", "--thinking-tokens", "4"]
        places = ["--path", exam, "--table", TABLE, "--output", tmp_path / "output"]
        return ["evaluate", "--benchmark", "videomme", *map(str, [*places, *model, *how])]

    return words


def test_a_sound_one_passes(sound: Path, ask: Ask, run_longrl: Run) -> None:
    ending = run_longrl(ask(sound / "exam"))
    require_orderly(ending)
    assert ending.status == 0, ending


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in (TABLE, FILM, SUBTITLES)
        for damage in DAMAGES
        # A film that goes on for a terabyte is read to its end for its digest.
        if (name, damage) != (FILM, "a terabyte of zeros")
    ],
)
def test_a_damaged_file(name: str, damage: str, sound: Path, ask: Ask, run_longrl: Run, tmp_path: Path) -> None:
    exam, outside = tmp_path / "exam", tmp_path / "outside"
    shutil.copytree(sound / "exam", exam)
    fill_outside(outside)
    DAMAGES[damage](exam / name, outside)
    before = snapshot(exam), snapshot(outside)
    ending = run_longrl(ask(exam))
    require_orderly(ending)
    assert ending.status != 0 or name != TABLE, ending  # a question about a broken film is wrong, and listed
    assert (snapshot(exam), snapshot(outside)) == before


@pytest.mark.parametrize("name", HOSTILE_ROWS)
def test_a_hostile_row(name: str, sound: Path, ask: Ask, run_longrl: Run, tmp_path: Path) -> None:
    exam, outside = tmp_path / "exam", tmp_path / "outside"
    shutil.copytree(sound / "exam", exam)
    fill_outside(outside)
    (exam / TABLE).write_text(json.dumps([QUESTION, QUESTION | {"question_id": "q2"} | HOSTILE_ROWS[name]]))
    before = snapshot(exam), snapshot(outside)
    require_orderly(run_longrl(ask(exam)))
    assert (snapshot(exam), snapshot(outside)) == before
