"""Holds for every test of the workspace.

The tests' tensors are tiny: a second thread only waits for the first, and on a busy machine it waits for long. Set
before torch is imported, and inherited by the processes that tests start. So are folders of the tests' own for state
and cache: what the user's programs remember is none of their business. Ray reads when it is imported, which vLLM does
too, whether its workers are started with `uv run`, each in a copy of the working directory.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
    os.environ[name] = tempfile.mkdtemp(prefix="longrl-tests-")
    atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
