"""`longrl evaluate --benchmark` and `longrl compare` from the user's side."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from longrl.cli import main
from longrl.commands.evaluation import names_benchmark, print_scores
from longrl.report.accuracy import render_accuracy
from longrl_trainer.evaluation.results import read_result
from mrsp_engine.tiny.families import build_tiny

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def write_film(path: Path, colour: tuple[int, int, int]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for _ in range(8):
            picture = np.full((56, 56, 3), colour, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def exam(tmp_path):
    folder = tmp_path / "exam"
    folder.mkdir()
    rows = []
    for name, pixels in COLOURS.items():
        write_film(folder / f"{name}.mp4", pixels)
        rows.append({"video": f"{name}.mp4", "question": "Which colour?", "options": list(COLOURS), "answer": name})
    rows.append({"video": "gone.mp4", "question": "Which colour?", "options": list(COLOURS), "answer": "red"})
    (folder / "exam.json").write_text(json.dumps(rows))
    return folder


def refused(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_wrong_is_one_line_before_a_model_is_looked_for(capsys, exam, tmp_path):
    places = ("--model.folder", tmp_path / "never looked at", "--output", tmp_path / "run")
    line = refused(capsys, "evaluate", "--benchmark", "videomm", "--path", exam, *places)
    assert line.startswith("error: --benchmark videomm: unknown benchmark 'videomm'; did you mean videomme?")
    line = refused(capsys, "evaluate", "--benchmark", "videomme", "--path", exam, "--table", "exam.json", *places)
    assert "exam.json: row 1: no field 'videoID', found video, question, options, answer" in line
    assert "no table of VRBench" in refused(capsys, "evaluate", "--benchmark", "vrbench", "--path", exam, *places)
    assert "frames=0: expected 1" in refused(
        capsys, "evaluate", "--benchmark", "questions", "--path", exam, "--frames", "8", "0", *places
    )
    assert "never looked at does not exist; set `model.folder`" in refused(
        capsys, "evaluate", "--benchmark", "questions", "--path", exam, *places
    )
    assert "no result.json in it" in refused(capsys, "compare", exam, exam)


def test_a_recipe_may_name_the_benchmark(tmp_path):
    assert names_benchmark(["--benchmark=videomme"])
    assert not names_benchmark(["--data.split", "held_out"])
    recipe = tmp_path / "exam.toml"
    recipe.write_text('benchmark = "videomme"\n')
    assert names_benchmark([str(recipe)])
    recipe.write_text("benchmark =\n")
    assert not names_benchmark([str(recipe)])


@pytest.mark.slow
def test_evaluate_then_compare(capsys, exam, tmp_path):
    build_tiny("qwen2_5_vl", tmp_path / "tiny")
    run = tmp_path / "run"
    arguments = ["evaluate", "--benchmark", "questions", "--path", str(exam), "--frames", "2", "4"]
    arguments += ["--model.folder", str(tmp_path / "tiny"), "--model.store", str(tmp_path / "store")]
    arguments += ["--sampler.engine", "transformers", "--direct-tokens", "2", "--thinking-tokens", "3"]
    assert main([*arguments, "--output", str(run)]) == 0
    table = capsys.readouterr().out
    assert "Questions: 4 of 4 questions about 4 videos; chance 33.3%, always A 50.0%" in table
    assert table.endswith(f"{run / 'report.html'}\n")
    assert "gone.mp4" in (run / "report.html").read_text()
    assert "not asked and wrong: 1 missing_video" in table
    assert "  gone.mp4: 'gone.mp4' isn't in the folder" in table
    assert main(["compare", str(run), str(run), "--output", str(tmp_path / "comparison.json")]) == 0
    assert capsys.readouterr().out.count("no difference (0 won, 0 lost)") == 5
    result = read_result(run)
    judged = replace(result.record, open_answers_by="a judge", undecided=["q1"])
    print_scores(replace(result, record=judged))
    assert (
        "compared by a judge\n  no judgement on answers to q1; they aren't counted as right" in capsys.readouterr().out
    )
    assert "question q1" in render_accuracy(replace(result, record=judged))
    compared = json.loads((tmp_path / "comparison.json").read_text())["protocols"]
    assert {(item["difference"], item["low"], item["high"], item["p_value"]) for item in compared} == {(0, 0, 0, 1)}
    rows = json.loads((exam / "exam.json").read_text())
    (exam / "exam.json").write_text(json.dumps(rows[:3]))
    assert main([*arguments, "--output", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    assert "expected runs on the same questions" in refused(capsys, "compare", run, tmp_path / "other")
