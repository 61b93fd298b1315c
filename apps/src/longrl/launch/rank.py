"""One rank: `python -m longrl.launch.rank SIGNAL COMMAND …` runs `longrl COMMAND …` so that it can be stopped well.

SIGNAL is ignored wherever the run doesn't wait for it, so that it may be sent again and again, and reach programs that
the rank starts, as Slurm's signals do. A rank whose torchrun is gone gets SIGTERM from the system: it saves and ends
instead of going on alone.
"""

import ctypes
import signal
import sys

from longvideo_reason_data.endings import run_command

PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


def main(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: The name of the signal, and those of `longrl`.

    Returns:
        The status to exit with.
    """
    name, *command = arguments
    if name != "SIGTERM":
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    sys.argv = ["longrl", *command]
    return run_command("longrl.cli")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
