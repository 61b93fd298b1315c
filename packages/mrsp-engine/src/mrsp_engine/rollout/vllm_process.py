"""Living with vLLM in one process.

vLLM is made to own its process: it changes environment variables (`LD_PRELOAD` among them, which every child would
inherit), replaces `torch.set_num_threads`, logs freely and reports usage. Training goes on in the same process here, so
each of these is confined to the moments when vLLM runs. The module doesn't know what is sampled.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Generator

import torch

__all__ = ["confined_import", "sampling_threads"]

# Set while vLLM is imported and started. Later reads of these, in the process itself, are of the first two only.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in process: starts in seconds and takes weights without copies
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would hold for the trainer's threads too
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
_LOG_LEVEL = "VLLM_LOGGING_LEVEL"


@contextlib.contextmanager
def confined_import() -> Generator[None]:
    """Import and start vLLM inside: quiet, offline, and with the process's state as before afterwards.

    What is written to standard error meanwhile is dropped, unless `VLLM_LOGGING_LEVEL` is set by the user.
    """
    environment = dict(os.environ)
    set_num_threads = torch.set_num_threads
    os.environ.update(_ENVIRONMENT)
    is_quiet = _LOG_LEVEL not in environment
    os.environ.setdefault(_LOG_LEVEL, "ERROR")
    try:
        with _dropped_standard_error() if is_quiet else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def sampling_threads(num_threads: int) -> Generator[None]:
    """Run vLLM inside with this many threads, without compiling and without touching the caller's random numbers."""
    previous = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # vLLM compiles its sampler on first use even in eager mode: half a minute that pays only on large machines.
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.set_num_threads(previous)


@contextlib.contextmanager
def _dropped_standard_error() -> Generator[None]:
    # Part of the noise is written by C++ code, so the file descriptor itself is turned away.
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
