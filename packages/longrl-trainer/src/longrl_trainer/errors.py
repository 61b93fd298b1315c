"""Errors of the trainer: one line for the reader, one exit code for the shell."""

from typing import ClassVar


class TrainerError(Exception):
    """Training or evaluation failed for a reason that lies outside the recipe."""

    exit_code: ClassVar[int] = 1


class TrainerUsageError(TrainerError):
    """The recipe, a setting or the output folder asks for something that can't be done."""

    exit_code: ClassVar[int] = 2
