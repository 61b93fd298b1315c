"""Holds for every test of the workspace.

The tests' tensors are tiny: a second thread only waits for the first, and on a busy machine it waits for long. Set
before torch is imported, and inherited by the processes that tests start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
