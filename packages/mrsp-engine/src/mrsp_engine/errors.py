"""The errors a user of the engine may see.

Each carries one line that names the value, what was expected and the setting to change, and the exit code a command
line should end with. Anything else that escapes the engine is a defect of the engine.
"""


class EngineError(Exception):
    """The engine was used rightly and could not do its work (a full disk, a damaged file, a dead sampler)."""

    exit_code = 1


class EngineUsageError(EngineError):
    """The engine was asked for something it can't do (a checkpoint of an unknown family, a wrong setting)."""

    exit_code = 2


class UnfitMediumError(EngineUsageError):
    """The model can't take this one medium, for its size or its length; others are not concerned."""


class UnreadableMediumError(EngineError):
    """A medium's reader can't give its frames: the file is at fault, and others can still be used."""
