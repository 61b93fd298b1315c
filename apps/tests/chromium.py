"""Chromium without a window, for tests that look at pages as a reader does; skipped where there is none."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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


class Chromium:
    """A browser with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        if PROGRAM is None:
            pytest.skip("no Chromium here")
        self._program, self._profile = PROGRAM, profile

    def open(self, address: str) -> str:
        """What the page is after its scripts have run, without them; fails if one complained."""
        switches = ["headless", "no-sandbox", "disable-gpu", "enable-logging=stderr", "virtual-time-budget=4000"]
        switches += [f"user-data-dir={self._profile}", "window-size=1400,1000", "dump-dom"]
        line = [self._program, *(f"--{switch}" for switch in switches), address]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr
        return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)

    def measure_labels(self, page: str, width: int) -> dict[str, Any]:
        """How far the labels of a page's charts are beyond their drawings, in pixels, and how wide its content is.

        The page is laid out in a frame of the given width: a window can't be as narrow as a telephone.
        """
        content = escape(page.replace("</body>", MEASURE))
        frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{content}"></iframe>'
        file = self._profile.with_name("frame.html")
        file.write_text(f"<!doctype html><meta charset='utf-8'><body>{frame}</body>")
        measured = re.search(r'<pre id="measured">(.*?)</pre>', self.open(file.as_uri()), flags=re.DOTALL)
        assert measured is not None
        return json.loads(unescape(measured[1]))
