"""Errors of the command line: one line for the reader, one exit code for the shell."""

from typing import ClassVar


class AppError(Exception):
    """A command failed for a reason other than its arguments."""

    exit_code: ClassVar[int] = 1


class AppUsageError(AppError):
    """A command's arguments request something that can't be done."""

    exit_code: ClassVar[int] = 2
