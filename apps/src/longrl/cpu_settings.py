"""How this process uses the CPU: two settings of its C libraries that determine how fast a model trains there.

Neither changes a result. Both are set before torch is loaded; values set by the user in the environment are kept.
"""

import ctypes
import os
import sys

SPIN_COUNT = 1000
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of glibc's `mallopt` parameters
KEPT_BYTES = 2**28
LARGEST_REUSED_BYTES = 2**25  # the maximum that glibc accepts


def settle_on_processor() -> None:
    """Apply both settings, where the platform has them."""
    # OpenMP threads spin while they wait, on a busy machine in competition with the very thread they wait for: five
    # times slower. This short spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    # A step frees and allocates the same tensors repeatedly. By default their memory is returned to the system in
    # between and allocated again page by page, which takes a tenth of a step.
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform == "linux" and not is_set:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGEST_REUSED_BYTES)
            mallopt(TRIM_THRESHOLD, KEPT_BYTES)
