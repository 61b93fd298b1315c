"""Whether all nodes see the same folders: the first one writes a small file into each, and the others look for it."""

from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from longrl.launch.job import LaunchJob
from longrl.machine.resources import existing_folder
from longrl_trainer.config.sections import ModelSection
from longrl_trainer.durable import LOOK_PREFIX

__all__ = ["SharedFolders"]

PATIENCE_SECONDS = 15.0
"""How long a network's file system may take to show a new file elsewhere."""


class SharedFolders:
    """The folders of a run that its ranks write for each other.

    Args:
        job: What is to be started.
        start: The name of this start, which is that of the files.
    """

    def __init__(self, job: LaunchJob, start: str) -> None:
        model = getattr(job.config, "model", None)
        self._folders = {"output": job.folder}
        if isinstance(model, ModelSection):
            self._folders["model.store"] = model.store
        self._name = f"{LOOK_PREFIX}shared-{start}"

    def write(self) -> None:
        """Write the files; a folder that can't be written is another check's finding."""
        for folder in self._folders.values():
            with suppress(OSError):
                (existing_folder(folder) / self._name).touch(exist_ok=True)

    def remove(self) -> None:
        """Remove them."""
        for folder in self._folders.values():
            with suppress(OSError):
                (existing_folder(folder) / self._name).unlink(missing_ok=True)

    def find_unshared(self, patience_seconds: float = PATIENCE_SECONDS) -> list[str]:
        """Lines on the folders in which the first node's file doesn't show up."""
        deadline = monotonic() + patience_seconds
        missing = dict(self._folders)
        while missing:
            missing = {setting: folder for setting, folder in missing.items() if not self._is_in(folder)}
            if monotonic() >= deadline:
                break
            sleep(0.2 if missing else 0)
        return [
            f"{folder.absolute()}: what node 0 writes there doesn't show up within {patience_seconds:g} s; put "
            f"`{setting}` on a file system that all nodes share, and start in the same working directory"
            for setting, folder in missing.items()
        ]

    def _is_in(self, folder: Path) -> bool:
        with suppress(OSError):
            return any(path.name == self._name for path in existing_folder(folder).iterdir())  # asks the server again
        return False
