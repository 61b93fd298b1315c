"""Several seeds side by side: the numbers of each, their mean and spread, and no mixture of different recipes."""

import json

import pytest
from chromium import Chromium

from longrl.cli import main

RECIPE = {"output": "x", "grpo": {"steps": 40, "seed": 0, "output": "x/grpo", "model": {"folder": "x/sft"}}}
SUMMARY = {
    "seconds": {"total": 600.0},
    "accuracy": {"untrained": 0.0, "sft": 0.4, "grpo": 0.5, "blind": 0.3, "constant": 0.25, "chance": 0.25},
    "accuracy_on_rl_questions": {"sft": {"accuracy": 0.45}, "grpo": {"accuracy": 0.65}},
}


def write_quickstart(folder, seed, *, grpo=0.5, steps=40, **changes):
    folder.mkdir()
    accuracy = SUMMARY["accuracy"] | {"grpo": grpo}
    (folder / "report.json").write_text(json.dumps(SUMMARY | {"seed": seed, "accuracy": accuracy} | changes))
    training = RECIPE["grpo"] | {"seed": seed, "steps": steps, "output": str(folder / "grpo")}
    (folder / "config.json").write_text(json.dumps({"output": str(folder), "seed": seed, "grpo": training}))
    return str(folder)


@pytest.fixture
def three(tmp_path):
    return [write_quickstart(tmp_path / f"q{seed}", seed, grpo=grpo) for seed, grpo in ((2, 0.7), (0, 0.5), (1, 0.6))]


def test_the_table_has_every_seed_and_their_mean_and_spread(three, tmp_path, capsys):
    assert main(["report", *three, "--output", str(tmp_path / "all.html")]) == 0
    numbers = json.loads((tmp_path / "all.json").read_text())
    assert [(row["seed"], row["shares"]["grpo"], row["minutes"]) for row in numbers["seeds"]] == [
        (0, 0.5, 10.0),
        (1, 0.6, 10.0),
        (2, 0.7, 10.0),
    ]
    assert numbers["mean"]["grpo"] == pytest.approx(0.6)
    assert numbers["mean"]["gain"] == pytest.approx(0.2)
    assert numbers["standard_deviation"]["grpo"] == pytest.approx(0.1)
    assert numbers["standard_deviation"]["sft"] == 0.0
    assert numbers["mean"]["rl_questions_grpo"] == 0.65
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["seed", "untrained", "CoT-SFT", "GRPO"]
    assert [line.split()[:4] for line in lines[1:6]] == [
        ["0", "0.0", "40.0", "50.0"],
        ["1", "0.0", "40.0", "60.0"],
        ["2", "0.0", "40.0", "70.0"],
        ["mean", "0.0", "40.0", "60.0"],
        ["±", "0.0", "0.0", "10.0"],
    ]
    assert lines[6:] == [str(tmp_path / "all.html"), str(tmp_path / "all.json")]
    page = (tmp_path / "all.html").read_text()
    assert "by +20.0 points on average" in page
    assert page.count('class="line faint"') == 3


def test_numbers_that_not_all_have_are_left_out(three, tmp_path):
    older = write_quickstart(tmp_path / "older", 7, accuracy_on_rl_questions={})
    assert main(["report", *three, older, "--output", str(tmp_path / "all.html")]) == 0
    assert "rl_questions_sft" not in json.loads((tmp_path / "all.json").read_text())["mean"]
    assert "RL questions, before" not in (tmp_path / "all.html").read_text()


def test_what_can_not_be_compared_is_one_line(three, tmp_path, capsys):
    again = write_quickstart(tmp_path / "again", 0)
    longer = write_quickstart(tmp_path / "longer", 3, steps=80)
    strange = write_quickstart(tmp_path / "strange", 4, accuracy={"sft": "<b>"})
    endless = write_quickstart(tmp_path / "endless", 5, seconds={"total": "Infinity"})
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for folders, words in (
        ([*three, again], f"{again}: has seed 0, as {three[1]}"),
        ([*three, longer], f"{longer}: grpo.steps is 80, but 40 in {three[0]}"),
        ([*three, strange], "report.json: doesn't say what a quickstart's does"),
        ([*three, endless], "report.json: doesn't say what a quickstart's does"),
        ([*three, str(unfinished)], "unfinished/report.json: no such file"),
        ([*three, "--output", "all.txt"], "--output all.txt: expected a name that ends in .html"),
        ([three[0], "--output", "all.html"], "--output all.html: is for several quickstarts"),
        ([], "no folder given"),
    ):
        assert main(["report", *folders]) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_no_label_of_the_chart_is_cut_off(three, tmp_path, width):
    assert main(["report", *three, "--output", str(tmp_path / "all.html")]) == 0
    measured = Chromium(tmp_path / "profile").measure_labels((tmp_path / "all.html").read_text(), width)
    assert measured["pageWidth"] == width
    assert measured["contentWidth"] <= width
    assert len(measured["labels"]) > 10
    assert [label for label in measured["labels"] if label["beyond"] > 0.5] == []
