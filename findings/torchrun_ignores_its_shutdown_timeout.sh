#!/usr/bin/env bash
# torchrun waits 30 seconds for the other ranks when one has failed, whatever --shutdown-timeout says.
#
# Guess before the test: with `--shutdown-timeout 5` a rank that takes its time over SIGTERM, because it is saving, is
# killed 5 seconds after another rank has failed; with a larger value it may save for longer.
#
# Behaviour: it is killed after 30 seconds, with the option and with TORCH_ELASTIC_SHUTDOWN_TIMEOUT alike. Both are
# obeyed only where torchrun itself gets a signal. So a checkpoint that takes longer than half a minute can't be saved
# after a failure elsewhere, and a node that should end at once doesn't.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
uv venv --quiet --python 3.11
uv pip install --quiet torch==2.13.0 numpy
cat > rank.py <<'PYTHON'
import os
import signal
import sys
import time
from pathlib import Path

if os.environ["RANK"] == "0":
    time.sleep(1)
    sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: Path("asked").write_text(str(time.time())))
while True:
    time.sleep(0.1)
    Path("alive.new").write_text(str(time.time()))
    os.replace("alive.new", "alive")
PYTHON
cat > waited.py <<'PYTHON'
import sys
from pathlib import Path

import torch

waited = float(Path("alive").read_text()) - float(Path("asked").read_text())
print(f"torch {torch.__version__}, {sys.argv[1]}: the other rank lived {waited:.0f} s after it was asked to end")
assert 28 < waited < 35, waited
PYTHON
for how in "--shutdown-timeout 5" "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=5"; do
    rm -f asked alive
    if [[ $how == --* ]]; then
        .venv/bin/torchrun --standalone --nproc-per-node 2 $how rank.py > log 2>&1 || true
    else
        env "$how" .venv/bin/torchrun --standalone --nproc-per-node 2 rank.py > log 2>&1 || true
    fi
    .venv/bin/python waited.py "$how"
done
