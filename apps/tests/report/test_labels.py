"""No label of a chart is cut off, on a wide screen and on a telephone."""

import pytest
from chromium import Chromium


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_no_label_of_a_chart_is_cut_off(finished, tmp_path, width):
    measured = Chromium(tmp_path / "profile").measure_labels(finished.page(), width)
    assert measured["pageWidth"] == width
    assert measured["contentWidth"] <= width
    assert len(measured["labels"]) > 30
    assert all(label["width"] > 0 for label in measured["labels"])
    assert [label for label in measured["labels"] if label["beyond"] > 0.5] == []
