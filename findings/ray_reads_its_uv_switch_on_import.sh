#!/usr/bin/env bash
# Ray's switch for starting workers with `uv run` is read when Ray is imported, not when it is initialised.
#
# Guess before the test: `RAY_ENABLE_UV_RUN_RUNTIME_ENV=0` set before `ray.init` keeps Ray from starting its workers with
# `uv run`, as most of its variables are read by `ray.init` or by the processes that it starts.
#
# Behaviour: whichever library imports Ray first decides. Set after `import ray`, which vLLM does when it is imported,
# the variable is ignored: under `uv run` every worker's runtime environment gets a `py_executable` that is `uv run` with
# the options of the driver, and a copy of the working directory. Set before the import, there is neither.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
cat > pyproject.toml <<'TOML'
[project]
name = "driver"
version = "0"
requires-python = ">=3.11"
dependencies = ["ray==2.60.0"]
TOML
cat > driver.py <<'PYTHON'
import os
import sys

is_early = sys.argv[1] == "early"
if is_early:
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
import ray

os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
given = ray.get_runtime_context().runtime_env
started = given.get("py_executable", "as usual").partition(" --python")[0]
print(f"ray {ray.__version__}, set {'before' if is_early else 'after'} the import: workers are started {started};",
      "working directory copied:", "working_dir" in given)
assert (started == "as usual") == is_early
assert ("working_dir" in given) != is_early
PYTHON
uv sync --quiet --python 3.11
for when in late early; do
    RAY_USAGE_STATS_ENABLED=0 uv run --quiet --no-sync driver.py $when 2> $when.err
done
