"""Folders in which a program writes and deletes, though somebody else may have put something there.

A store or a run is changed long after it was created, and may have been copied from anywhere in the meantime. So files
are written, renamed and removed with the same care with which `ForeignFolder` reads them: every folder on the way is a
real one, a new file is always created, and removing a link removes only the link.
"""

import os
import shutil
import stat
from contextlib import suppress
from typing import BinaryIO

from longrl_files.folders import ForeignFolder
from longrl_files.regular_files import APPEND_FLAGS, adopt

_NEW_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class OwnFolder(ForeignFolder):
    """A folder that is changed although its content is not trusted.

    What the system refuses is raised as `OSError`; what leads elsewhere, as the caller's own kind of error.
    """

    def make_folder(self, name: str) -> None:
        """Make a folder unless there is one.

        Raises:
            error: Something else has the name.
        """
        try:
            with self._parent(name) as (parent, last):
                os.mkdir(last, dir_fd=parent)
        except FileExistsError:
            # Opened, not listed: it is asked for before every file, and may have a hundred thousand of them.
            with suppress(FileNotFoundError), self._folder(name):
                pass

    def create(self, name: str) -> BinaryIO:
        """Make a new, empty file and open it to be written.

        Raises:
            FileExistsError: Something has the name, be it a link to nothing.
            error: As for `status`.
        """
        with self._parent(name) as (parent, last):
            return os.fdopen(os.open(last, _NEW_FLAGS, 0o666, dir_fd=parent), "w+b")

    def extend(self, name: str) -> BinaryIO:
        """Open a file to write at its end; it is made if there is none.

        Raises:
            error: Something other than a regular file has the name.
        """
        status = self.status(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            self.path(name)
        with self._parent(name) as (parent, last):
            descriptor = os.open(last, APPEND_FLAGS | os.O_NOFOLLOW, 0o666, dir_fd=parent)
        return adopt(descriptor, self.root / name, error=self._error, mode="a+b")

    def replace(self, name: str, other: str) -> None:
        """Give a file another name, replacing whatever had that name; a link there is itself replaced."""
        with self._parent(name) as (parent, last), self._parent(other) as (other_parent, other_last):
            os.replace(last, other_last, src_dir_fd=parent, dst_dir_fd=other_parent)

    def link(self, name: str, other: str) -> None:
        """Give a file another name beside its own.

        Raises:
            FileExistsError: Something has that name.
        """
        with self._parent(name) as (parent, last), self._parent(other) as (other_parent, other_last):
            os.link(last, other_last, src_dir_fd=parent, dst_dir_fd=other_parent, follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Remove a file, or a link itself, if there is one."""
        try:
            with self._parent(name) as (parent, last):
                os.unlink(last, dir_fd=parent)
        except FileNotFoundError:
            return

    def remove_tree(self, name: str) -> None:
        """Remove whatever has the name: a file, a link itself, or a folder with all that is in it, never through links.

        Raises:
            error: A folder on the way is a link.
        """
        status = self.status(name)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            self.remove(name)
            return
        with self._parent(name) as (parent, last):
            shutil.rmtree(last, dir_fd=parent)
