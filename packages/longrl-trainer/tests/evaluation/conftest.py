"""Makes the judge's server, which tests of rewards use too, importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "rewards"))
