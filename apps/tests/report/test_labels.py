"""No label of a chart is cut off, on a wide screen and on a telephone."""

import json
import re
from html import escape, unescape

import pytest
from chromium import Chromium

MEASURE = """
<script>
const found = [...document.querySelectorAll("svg")].flatMap((svg) => {
  const around = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].map((text) => {
    const box = text.getBoundingClientRect();
    const beyond = Math.max(
      around.left - box.left, box.right - around.right, around.top - box.top, box.bottom - around.bottom);
    return { text: text.textContent, width: box.width, beyond };
  });
});
const result = { pageWidth: innerWidth, contentWidth: document.documentElement.scrollWidth, labels: found };
const shown = document.createElement("pre");
parent.document.body.append(Object.assign(shown, { id: "measured", textContent: JSON.stringify(result) }));
</script>
</body>
"""


def measure(page, width, folder):
    """Lay the page out in a frame of that width: a window can't be as narrow as a telephone."""
    frame = (
        f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(page.replace("</body>", MEASURE))}">'
    )
    (folder / "frame.html").write_text(f"<!doctype html><meta charset='utf-8'><body>{frame}</iframe></body>")
    shown = Chromium(folder / "profile").open((folder / "frame.html").as_uri())
    return json.loads(unescape(re.search(r'<pre id="measured">(.*?)</pre>', shown, flags=re.DOTALL)[1]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_no_label_of_a_chart_is_cut_off(finished, tmp_path, width):
    measured = measure(finished.page(), width, tmp_path)
    assert measured["pageWidth"] == width
    assert measured["contentWidth"] <= width
    assert len(measured["labels"]) > 30
    assert all(label["width"] > 0 for label in measured["labels"])
    assert [label for label in measured["labels"] if label["beyond"] > 0.5] == []
