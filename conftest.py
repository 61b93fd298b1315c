"""Holds for every test of the workspace.

The tests' tensors are tiny: a second thread only waits for the first, and on a busy machine it waits for long. Set
before torch is imported, and inherited by the processes that tests start. So is a state folder of the tests' own: what
the user's programs remember is none of their business.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="longrl-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
