"""The settings that the command makes in its own process before torch is loaded."""

import os
import subprocess
import sys

import pytest

CHILD = """
import os, resource
from longrl.cpu_settings import settle_on_processor

if {settles}:
    settle_on_processor()
kept = []
for size in range(4, 33, 4):  # as a step's tensors: some larger, some smaller, all gone at its end
    kept.append(bytearray(size * 2**18))
kept.clear()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    kept += [bytearray(size * 2**18) for size in range(4, 33, 4)]
    kept.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ.get("GOMP_SPINCOUNT"))
"""


def run(settles: bool, **environment: str) -> tuple[int, str]:
    own = {name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "GLIBC_TUNABLES"}}
    own = {name: value for name, value in own.items() if not name.startswith("MALLOC_")} | environment
    script = CHILD.format(settles=settles)
    output = subprocess.run([sys.executable, "-c", script], env=own, capture_output=True, text=True, check=True).stdout
    num_faults, spin_count = output.split()
    return int(num_faults), spin_count


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_is_reused_instead_of_given_back() -> None:
    without, _ = run(settles=False)
    settled, _ = run(settles=True)
    assert settled < without / 10


def test_what_the_user_set_stays() -> None:
    assert run(settles=True)[1] == "1000"
    assert run(settles=True, GOMP_SPINCOUNT="7")[1] == "7"
    without, _ = run(settles=False, GLIBC_TUNABLES="glibc.malloc.check=0")
    settled, _ = run(settles=True, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert settled > without / 2
