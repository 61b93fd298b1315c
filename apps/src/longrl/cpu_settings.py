"""How this process uses the CPU: two settings of its C libraries that decide how fast a model trains there.

Neither changes a result. Both are made before torch is loaded; a value that the user has set in the environment stays.
"""

import ctypes
import os
import sys

SPIN_COUNT = 1000
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of glibc's `mallopt` parameters
KEPT_BYTES = 2**30
LARGEST_REUSED_BYTES = 2**25  # the most that glibc takes


def settle_on_processor() -> None:
    """Make both settings, where the platform has them."""
    # Threads of OpenMP spin while they wait, on a busy machine against the very thread they wait for: five times
    # slower. This short a spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    # A step frees and takes the same tensors over and over. By default their memory goes back to the system in between
    # and comes again page by page, a tenth of a step.
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform == "linux" and not is_set:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGEST_REUSED_BYTES)
            mallopt(TRIM_THRESHOLD, KEPT_BYTES)
