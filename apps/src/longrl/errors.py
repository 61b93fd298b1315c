"""Errors of the command line: one line for the reader, one exit code for the shell."""

from typing import ClassVar


class AppError(Exception):
    """A command failed for a reason that lies outside of what was typed."""

    exit_code: ClassVar[int] = 1


class AppUsageError(AppError):
    """A command was asked for something that can't be done."""

    exit_code: ClassVar[int] = 2
