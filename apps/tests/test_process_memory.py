"""How much memory processes use, and that it is given back."""

import subprocess
import sys

import pytest

HELD = """
from longrl.cpu_settings import settle_on_processor
from longrl.process_memory import return_memory

settle_on_processor()

def resident_bytes():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

kept = [bytearray(2**20) for _ in range(200)]
last = bytearray(2**20)  # keeps what lies before it from being given back unasked
kept.clear()
before = resident_bytes()
return_memory()
print(before - resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_is_given_back_between_stages() -> None:
    output = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True).stdout
    assert int(output) > 150 * 2**20


FAMILY = """
import subprocess, sys
from longrl.process_memory import memory_bytes

before = memory_bytes()
script = "held = b'x' * 2**26; print(flush=True); input()"
with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    beside = memory_bytes()
    child.communicate(bytes([10]))
print(beside - before, memory_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the system's folder of processes")
def test_children_count_while_they_live() -> None:
    output = subprocess.run([sys.executable, "-c", FAMILY], capture_output=True, text=True, check=True).stdout
    beside, after = map(int, output.split())
    assert beside > 2**26 > 4 * after
