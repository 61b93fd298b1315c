"""The errors that a user of this package can meet.

Every message is one line that names the value, what was expected, and what to change, so that a command can print
it without a traceback. The class tells the exit code; nothing here knows about any particular command.
"""


class DataError(Exception):
    """Something failed that the command line was not to blame for: a damaged file, a full disk, a silent server."""

    exit_code = 1


class UsageError(DataError):
    """The request itself was wrong: a path that isn't there, a value out of range, a file of another version."""

    exit_code = 2


def first_error(group: BaseExceptionGroup[DataError]) -> DataError:
    """Choose the one error to tell of several that happened side by side."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def brief(error: BaseException) -> str:
    """Cut an error of another library down to one short line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
