"""Errors of the trainer: one line for the reader, one exit code for the shell."""

from typing import ClassVar


class TrainerError(Exception):
    """Training or evaluation failed for a reason outside the recipe."""

    exit_code: ClassVar[int] = 1


class TrainerUsageError(TrainerError):
    """The recipe, a setting or the output folder requires something that can't be done."""

    exit_code: ClassVar[int] = 2


class StoppedError(TrainerError):
    """A run ended before it was done, at a signal or for want of a judge, and can go on; EX_TEMPFAIL of sysexits.h."""

    exit_code: ClassVar[int] = 75


class SignalledError(StoppedError):
    """A run has saved its state and ended because a signal asked for it, which is no failure."""
