"""Chromium without a window, for tests that look at pages as a reader does; skipped where there is none."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
