"""`longrl export` on a real run: where the model goes, and one line for every mistake."""

import json
from pathlib import Path

import pytest

from longrl.cli import main
from longrl_trainer.runs.settings import SETTINGS_NAME
from mrsp_engine.tiny.published import write_published


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run as it lies on disk, whose model is a published one."""
    run = tmp_path / "run"
    write_published("qwen3_4b", run / "model")
    (run / SETTINGS_NAME).write_text(json.dumps({"stage": "sft", "settings": {}, "inputs": {}, "places": {}}))
    (run / "result.json").write_text(json.dumps({"num_steps": 7}))
    return run


def test_it_says_what_it_wrote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--step", "7", "--output", str(tmp_path / "exported")]) == 0
    assert capsys.readouterr().out == f"the model after 7 steps\n{tmp_path / 'exported'}\n"
    names = {str(path.relative_to(run / "model")) for path in (run / "model").rglob("*")}
    assert names == {str(path.relative_to(tmp_path / "exported")) for path in (tmp_path / "exported").rglob("*")}


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "exported")]
    for arguments, expected in (
        ([str(tmp_path), *output], "no run is here"),
        ([str(tmp_path / "none"), *output], "no run is here"),
        ([str(run), *output, "--step", "3"], "has no model of step 3; expected one of 7"),
        ([str(run), "--output", str(run)], "exists and is not an empty folder"),
    ):
        assert main(["export", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert expected in line
    assert not (tmp_path / "exported").exists()
