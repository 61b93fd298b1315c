"""The page of an evaluation: complete, self-contained, safe with any text, and drawn from the result alone."""

import html.parser
import re

import pytest

from longrl.report.accuracy import accuracy_chart, list_groups, render_accuracy, write_accuracy_page
from longrl_trainer.evaluation.results import (
    BenchmarkRecord,
    BenchmarkResult,
    FrameRecord,
    PromptRecord,
    UnusedVideo,
)
from longrl_trainer.evaluation.scoring.scores import Baselines, GroupScore, ProtocolScores
from longrl_trainer.evaluation.scoring.series import PublishedScore

HOSTILE = "<script>alert(1)</script>\x1b[31m & \"'"
VOID = frozenset({"meta", "line", "circle", "path", "br"})


def scores(mode: str, num_frames: int, accuracy: float, **changes) -> ProtocolScores:
    fields = {
        "protocol": f"{mode}/{num_frames}" if num_frames else mode,
        "mode": mode,
        "num_frames": num_frames,
        "subtitles": False,
        "accuracy": accuracy,
        "standard_error": 0.02,
        "official_accuracy": accuracy - 0.05,
        "official_standard_error": 0.02,
        "accuracy_under_all_rotations": None,
        "published": None,
        "official_published": None,
        "groups": {"duration": {"long": GroupScore(accuracy=accuracy, standard_error=0.03, count=7)}},
        "count": 10,
        "num_responses": 10,
        "unparsed_rate": 0.1,
        "truncated_rate": 0.0,
        "not_asked": {"missing_video": 1},
        "mean_tokens": 12.0,
    }
    return ProtocolScores(**(fields | changes))


def make_result(*listed: ProtocolScores, text: str = "plain") -> BenchmarkResult:
    record = BenchmarkRecord(
        benchmark="videomme",
        title="Video-MME",
        tables=("test.parquet",),
        questions_digest="a" * 64,
        num_questions=10,
        num_published=10,
        num_videos=4,
        num_subtitled=3,
        flawed={text: text},
        unused_videos=[UnusedVideo(video=text, problem="missing_video", detail=text, num_questions=1)],
        subtitle_problems=[text],
        model=text,
        model_digest="b" * 64,
        sampler="vllm",
        decoder="pyav 18",
        frames=[
            FrameRecord(
                num_frames=8, digest="c" * 64, num_videos=3, fewest=8, most=8, smallest=(56, 56), largest=(56, 84)
            )
        ],
        prompts=[PromptRecord(protocol="direct/8", digest="d" * 64, example=text)],
        official=True,
        versions={"torch": "2.13"},
        settings={"frames": [8, 32], "direct_instruction": text},
    )
    baselines = Baselines(chance=0.25, constant_letter="B", constant=0.3)
    return BenchmarkResult(record=record, baselines=baselines, scores=list(listed))


RUN = (
    scores("direct", 8, 0.5),
    scores("thinking", 8, 0.55),
    scores("direct", 32, 0.6),
    scores("thinking", 32, 0.7),
    scores("blind", 0, 0.35),
)


class TagsInOrder(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        assert tag != "script"
        assert not any(name in ("src", "href") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_the_page_is_complete_and_safe_with_any_text(text):
    page = render_accuracy(make_result(*RUN, text=text))
    parser = TagsInOrder()
    parser.feed(page)
    assert parser.open == []
    assert "70.0% on Video-MME, asked thinking/32" in page
    assert "65.0% <small>± 2.0</small>" in page  # the official one
    assert "By duration" in page
    assert "8 to 8 frames of" in page


def test_the_plot_has_a_line_for_each_way_of_asking_and_its_error_bars():
    chart = str(accuracy_chart(make_result(*RUN)))
    assert chart.count('class="line ') == 2
    assert chart.count('class="error ') == 4
    assert chart.count('class="rule"') == 2
    heights = [float(height) for height in re.findall(r'<circle class="dot accent" cx="[\d.]+" cy="([\d.]+)"', chart)]
    assert heights[0] > heights[1]  # more frames, more accuracy
    assert "constant" in chart
    assert accuracy_chart(make_result(scores("blind", 0, 0.35))) is None


def test_columns_appear_where_there_is_something_in_them():
    plain = render_accuracy(make_result(*RUN))
    assert "Published score" not in plain
    assert "Under all rotations" not in plain
    published = PublishedScore(score=0.125, standard_error=None, count=3)
    page = render_accuracy(
        make_result(scores("direct", 8, 0.5, published=published, accuracy_under_all_rotations=0.375))
    )
    assert ">12.5%" in page
    assert ">37.5%" in page
    assert "Official" in render_accuracy(make_result(scores("direct", 8, 0.5, official_accuracy=None)))


def test_groups_have_a_column_for_each_protocol(tmp_path):
    ((group, (row,)),) = list_groups(make_result(*RUN))
    assert (group, row.name, row.count, len(row.scores)) == ("duration", "long", 7, 5)
    assert write_accuracy_page(tmp_path, make_result(*RUN)).read_text() == render_accuracy(make_result(*RUN))
