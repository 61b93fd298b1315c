"""No label of a chart is cut off, on a wide screen and on a telephone."""

import pytest
from chromium import Chromium

from longrl.report.charts import Rule, Series, choice_axis, line_chart, linear_axis
from longrl.report.templates import open_templates


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_no_label_of_a_chart_is_cut_off(finished, tmp_path, width):
    measured = Chromium(tmp_path / "profile").measure_labels(finished.page(), width)
    assert measured["pageWidth"] == width
    assert measured["contentWidth"] <= width
    assert len(measured["labels"]) > 30
    assert all(label["width"] > 0 for label in measured["labels"])
    assert [label for label in measured["labels"] if label["beyond"] > 0.5] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_long_labels_get_room(tmp_path, width):
    chart = line_chart(
        "accuracy",
        [Series(label="thinking, subtitles", points=[(8, 0.00125), (8192, 0.0025)])],
        choice_axis("frames per video", [8, 64, 8192]),
        linear_axis("loss, nats per token", 0.00125, 0.0025),
        [Rule(label="without any frames", value=0.002)],
    )
    style = open_templates().get_template("style.css.jinja").render()
    page = f"<!doctype html><style>{style}</style><body><main><figure>{chart}</figure></main></body>"
    measured = Chromium(tmp_path / "profile").measure_labels(page, width)
    assert [label for label in measured["labels"] if label["beyond"] > 0.5] == []
    assert {"thinking, subtitles", "without any frames", "0.0025"} <= {label["text"] for label in measured["labels"]}
