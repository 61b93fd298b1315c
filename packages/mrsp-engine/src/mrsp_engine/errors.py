"""The errors a user of the engine may see.

Each has one line that names the value, what was expected and the setting to change, and the exit code for a command
line program. Any other exception that leaves the engine is a bug in the engine.
"""


class EngineError(Exception):
    """The engine was used correctly but could not do its work (a full disk, a damaged file, a dead sampler)."""

    exit_code = 1


class EngineUsageError(EngineError):
    """The engine was asked for something it does not support (a checkpoint of an unknown family, a wrong setting)."""

    exit_code = 2


class UnfitMediumError(EngineUsageError):
    """The model can't accept this one medium, because of its size or its length; others are not affected."""


class UnreadableMediumError(EngineError):
    """A medium's frames can't be read: the file is at fault, and others can still be used."""
