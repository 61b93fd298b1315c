"""The page: complete, self-contained, and safe with any text; and the arithmetic of its charts."""

import html.parser
import itertools
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longrl.cli import main
from longrl.errors import AppUsageError
from longrl.report.build import build_report, describe_bytes, describe_seconds
from longrl.report.charts import (
    HEIGHT,
    Rule,
    Series,
    keep_apart,
    line_chart,
    linear_axis,
    log_axis,
    nice_step,
    smooth,
    step_axis,
)
from longrl.report.figures import describe_gain
from longrl.report.learning_curve import draw_learning_curve, variance_of_groups
from longrl.report.rollouts import choose_items, choose_responses
from longrl.report.run_data import read_run
from longrl.report.summary import compare_models
from longrl.report.thumbnails import choose_frames


class Outline(html.parser.HTMLParser):
    """Collects tags, and detects when they don't close in order."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "path", "link", "hr"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def outline(page):
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.mark.slow
def test_the_page_is_self_contained_and_well_formed(finished):
    parser = outline(finished.page())
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert parser.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in parser.addresses)
    assert not re.search(r"url\(|@import|https?://", finished.page())


@pytest.mark.slow
def test_the_page_shows_what_was_measured(finished):
    page, summary = finished.page(), finished.summary()
    assert page.count('<article class="rollout">') >= 6
    assert page.count('<svg class="chart"') == 4
    for name in ("grpo", "sft", "untrained", "constant", "blind"):
        assert f"{summary['accuracy'][name]:.1%}" in page
    for found in summary["accuracy_on_rl_questions"].values():
        assert f"{found['accuracy']:.1%}" in page
    assert describe_gain(summary["gain_of_grpo"]["held_out"]) in page
    assert "9 encodes: every video once" in page
    assert "for the held-out videos are also 2" in page
    assert f"{summary['parameters']:,}" in page
    assert 'class="evidence"' in page


@pytest.mark.slow
def test_any_text_is_shown_as_text(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    path = folder / "evaluations" / "grpo" / "4-frames.json"
    evaluation = json.loads(path.read_text())
    for item in evaluation["items"]:
        item["response"] = "<script>alert(1)</script><img src=x>"
    path.write_text(json.dumps(evaluation))
    build_report(folder)
    parser = outline((folder / "report.html").read_text())
    assert "script" not in parser.tags
    assert "x" not in parser.addresses


@pytest.mark.slow
def test_a_rewritten_report_keeps_the_machine_and_the_times_of_the_run(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    summary = finished.summary()
    summary["versions"]["torch"] = "1.2.3"
    (folder / "report.json").write_text(json.dumps(summary))
    assert build_report(folder)["versions"]["torch"] == "1.2.3"
    assert build_report(folder)["seconds"]["grpo"] == summary["seconds"]["grpo"]


@pytest.mark.slow
def test_a_run_without_answers_to_its_rl_questions_still_has_a_report(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "evaluations" / "sft" / "train-rl.json").unlink()
    summary = build_report(folder)
    assert summary["accuracy_on_rl_questions"] == {}
    assert set(summary["gain_of_grpo"]) == {"held_out"}
    assert "Questions that GRPO trains on" not in (folder / "report.html").read_text()


@pytest.mark.slow
def test_the_learning_curve_has_every_step_their_mean_and_the_noise_of_a_step(finished):
    run = read_run(finished.folder)
    steps = [{"step": step, "accuracy": 0.4 + 0.2 * (step % 2), "groups": 4} for step in range(1, 61)]
    groups = [
        {"options": ["x", "y"], "answer": "A", "responses": [{"parsed": letter} for letter in letters]}
        for letters in ("AA", "BB", "AB")
    ]
    learning = draw_learning_curve(replace(run, grpo_steps=steps, rollouts=groups))
    assert learning.num_steps_in_mean == 7
    assert learning.standard_error == pytest.approx((0.25 / 4) ** 0.5)
    assert learning.chart.count('class="dot plain"') == 60
    assert learning.chart.count('class="line ') == 1
    assert learning.chart.count('class="band ') == 1
    assert [name in learning.chart for name in (">before<", ">after<")] == [True, True]
    open_questions = [step | {"accuracy": None} for step in steps]
    assert draw_learning_curve(replace(run, grpo_steps=open_questions)) is None
    assert draw_learning_curve(replace(run, grpo_steps=steps, rollouts=[])).standard_error is None


@pytest.mark.slow
def test_two_models_are_compared_question_by_question(finished):
    """The error is that of the differences, with questions about one video together."""
    records = read_run(finished.folder).records
    names = {video: [name for name in records if name.startswith(f"held_out-{video}")] for video in ("00000", "00001")}
    first, second = names["00000"], names["00001"]
    assert len(first) == len(second) == 2

    def answered(*scores):
        items = zip([*first, *second], scores, strict=True)
        return {"items": [{"question_id": name, "score": score} for name, score in items]}

    gain = compare_models(answered(0.0, 0.0, 1.0, 0.0), answered(1.0, 1.0, 1.0, 0.0), records)
    assert gain == {"accuracy": 0.5, "standard_error": pytest.approx(2**0.5 / 4)}
    assert compare_models(answered(0.0, 0.0, 1.0, 0.0), answered(1.0, 1.0, 1.0, None), records)["accuracy"] == 2 / 3


@pytest.mark.slow
def test_an_unfinished_run_has_no_report(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "stages" / "grpo.json").unlink()
    with pytest.raises(AppUsageError, match="stage grpo isn't finished; run `longrl quickstart --output"):
        build_report(folder)


FOREIGN = {
    "stages/grpo.json": ("[]", "[" * 100_000, '{"format_version": 1, "result": 5}'),
    "config.json": ("[]", "{}", '{"grpo": {"data": {"num_frames": "x"}}, "evaluation": 5}', "\ud800"),
    "evaluations/grpo/{frames}-frames.json": ("{}", "[]", '{"a":' * 10_000),
    "sft/metrics.jsonl": ("[]\n", "{}\n", "[" * 10_000 + "\n"),
    "grpo/rollouts.jsonl": ('{"step": 1, "groups": 5}\n', '{"step": "1"}\n'),
    "grpo/model/model.safetensors": ("", "x" * 100, "\x01\0\0\0\0\0\0\0["),
    "dataset/records.parquet": ("", "x" * 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_a_run_from_elsewhere_is_one_line(finished, tmp_path, name, capsys):
    """Other content, and something else in the place of the file."""
    shutil.copytree(finished.folder, tmp_path / "run")
    folder, outside = tmp_path / "run", tmp_path / "outside"
    frames = json.loads((folder / "config.json").read_text())["grpo"]["data"]["num_frames"]
    path = folder / name.format(frames=frames)
    shutil.move(path, outside)
    before = outside.read_bytes()
    pages = [(folder / page).read_bytes() for page in ("report.html", "report.json")]
    for content in (*FOREIGN[name], "link", "fifo", "folder"):
        if content == "link":
            path.symlink_to(outside)
        elif content == "fifo":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        else:
            path.write_bytes(content.encode(errors="surrogatepass"))
        assert main(["report", str(folder)]) in (1, 2), content[:50]
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) < 400
        assert line.isprintable()
        path.rmdir() if content == "folder" else path.unlink()
    assert outside.read_bytes() == before
    assert [(folder / page).read_bytes() for page in ("report.html", "report.json")] == pages


@given(st.floats(1e-9, 1e9))
def test_a_nice_step_is_round_and_at_most_two_and_a_half_times_too_large(rough):
    step = nice_step(rough)
    assert rough * 0.999 <= step <= 2.5 * rough * 1.001
    assert f"{step:.6e}"[:3] in {"1.0", "2.0", "2.5", "5.0"}


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@example(-8e-6, 20001.0)
def test_a_linear_axis_covers_its_values(low, extent):
    axis = linear_axis("x", low, low + extent)
    rounding = 1e-9 * extent  # a value that close to a round number counts as equal
    assert axis.low <= low + 1e-6 * abs(low) + 1e-6 + rounding
    assert axis.high >= low + extent - 1e-6 * abs(low + extent) - 1e-6 - rounding
    assert 2 <= len(axis.ticks) <= 8


def test_axes_write_round_numbers():
    assert [text for _, text in linear_axis("x", 0.2, 0.93, is_share=True).ticks] == [
        "20%",
        "40%",
        "60%",
        "80%",
        "100%",
    ]
    assert [text for _, text in linear_axis("x", 0.0, 5.2).ticks] == ["0", "2", "4", "6"]
    assert [text for _, text in linear_axis("x", 0.0, 0.9).ticks] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [text for _, text in log_axis("x", 3e-7, 1e-4).ticks] == ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴"]
    assert [value for value, _ in step_axis(40).ticks] == [1, 10, 20, 30, 40]
    assert log_axis("x", 1e-6, 1e-4).place(1e-5) == pytest.approx(0.5)


@given(st.lists(st.floats(0, HEIGHT - 50), max_size=8))
def test_labels_never_cover_each_other(places):
    kept = [place for place, _, _ in keep_apart([(place, "x", "plain") for place in places])]
    assert len(kept) == len(places)
    assert all(after - before >= 15 - 1e-6 for before, after in itertools.pairwise(kept))


def test_a_chart_skips_what_is_not_a_number_and_escapes_its_words():
    chart = line_chart(
        'a "title"',
        [Series(label="<b>", points=[(1, 1.0), (2, float("nan")), (3, 2.0)])],
        step_axis(3),
        linear_axis("y", 0, 2),
        [Rule(label="&", value=1.0)],
    )
    assert "nan" not in chart
    assert "&lt;b&gt;" in chart
    assert ">&amp;<" in chart
    assert 'aria-label="a &#34;title&#34;"' in chart


def test_smoothing_keeps_the_mean_of_a_window():
    assert smooth([(1, 0.0), (2, 3.0), (3, 6.0)], 1) == [(1, 1.5), (2, 3.0), (3, 4.5)]
    assert smooth([(1, 0.0), (2, 3.0)], 0) == [(1, 0.0), (2, 3.0)]


def test_evidence_is_shown_before_other_frames():
    chosen = choose_frames(range(100), evidence={10, 50, 51, 52})
    assert len(chosen) == 8
    assert {10, 50, 51, 52} <= set(chosen)
    assert chosen == sorted(chosen)
    assert choose_frames([1, 2], evidence=set()) == [1, 2]
    assert len(choose_frames(range(100), evidence=set(range(100)))) == 8


def test_shown_answers_are_right_and_wrong_of_every_skill():
    items = [
        {"skill": skill, "correct": correct, "question_id": f"{skill} {correct} {number}"}
        for skill in ("goal", "plot")
        for correct in (True, False)
        for number in range(5)
    ]
    media = {item["question_id"]: {item["question_id"][-1]} for item in items}
    chosen = choose_items(items, 4, media)
    assert {(item["skill"], item["correct"]) for item in chosen} == {
        ("goal", True),
        ("plot", True),
        ("goal", False),
        ("plot", False),
    }
    assert len(set.union(*(media[item["question_id"]] for item in chosen))) == 4
    assert len(choose_items(items, 100, media)) == 20


def test_shown_responses_are_the_best_and_worst_of_the_first_and_last_step():
    def group(step, rewards):
        return {"step": step, "responses": [{"reward": reward} for reward in rewards]}

    groups = [group(1, [0.1, 0.1]), group(1, [0.1, 1.0, 0.0]), group(2, [1.0, 0.0]), group(3, [0.5, None])]
    shown = [(group["step"], place) for group, place in choose_responses(groups)]
    assert shown == [(1, 1), (1, 2), (3, 0), (3, 1)]
    assert choose_responses([]) == []


def test_the_noise_of_a_step_is_that_of_its_questions():
    def group(answers, options=("x", "y")):
        return {"options": options, "answer": "A", "responses": [{"parsed": answer} for answer in answers]}

    assert variance_of_groups([group("AAAA"), group("BBBB")]) == 0.5
    assert variance_of_groups([group("AB"), group("BA"), group(["x"], options=())]) == 0.0
    assert variance_of_groups([group("AAAA")]) is None


def test_a_band_goes_along_the_line_and_back():
    series = Series(label="", points=[(1, 1.0), (3, 1.0)], band=[0.5, 1.0])
    chart = line_chart("x", [series], step_axis(3), linear_axis("y", 0, 2))
    heights = [float(height) for height in re.search(r'class="band accent" d="(.*?)Z"', chart)[1].split()[1::2]]
    middle = float(re.search(r'class="line accent" d="M[\d.]+ ([\d.]+)', chart)[1])
    distances = [middle - height for height in heights]
    assert distances == pytest.approx([distances[0], 2 * distances[0], -2 * distances[0], -distances[0]], abs=0.2)
    assert distances[0] > 10


def test_units_are_readable():
    assert describe_seconds(7.26) == "7.3 s"
    assert describe_seconds(305) == "5 min 05 s"
    assert describe_bytes(3 * 1024**3) == "3.0 GiB"
    assert describe_bytes(10) == "10 B"
