"""Folders that somebody else made: datasets, stores, runs, checkpoints.

A name inside such a folder leads to a regular file inside it, or to an error of one line. Links are not followed,
neither as the file nor as a folder on the way, because a downloaded folder may hold a link to anything its reader may
read, or may write. Two kinds of links are followed: those inside a folder that the user allowed by name
(`follow_links`), and those of the Hugging Face hub's cache, whose snapshots consist of links into `blobs` beside them.

Every part of a name is opened relative to the folder before it, so that nothing can be exchanged between the look and
the use. Libraries that open a path themselves get a path that was looked at (`ForeignFolder.path`); between that look
and their own a process on this machine could still exchange the file.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.regular_files import APPEND_FLAGS, MAX_TEXT_BYTES, READ_FLAGS, adopt, read_all, reason_of, show

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LINK_ERRORS = frozenset({errno.ELOOP, errno.EMLINK})
_LINK_CURE = "put the file itself there, or allow links in this folder with --follow-links (data.follow_links)"
FOLLOWED_VARIABLE = "LONGRL_FOLLOWED_FOLDERS"
"""Environment variable with the folders in which links are followed, so that processes started by this one know."""


def follow_links(folder: Path) -> None:
    """Follow links inside a folder from now on, wherever they lead, in this process and those that it starts.

    For the user to decide (`--follow-links`), who may keep a dataset whose videos are links into an archive.
    """
    os.environ[FOLLOWED_VARIABLE] = json.dumps(sorted({*_followed(), os.path.realpath(folder)}))


def _followed() -> set[str]:
    return set(json.loads(os.environ.get(FOLLOWED_VARIABLE, "[]")))


class ForeignFolder:
    """A folder whose content is not trusted.

    Args:
        path: The folder. It may itself be a link, since the user named it.
        error: The exception that is raised for whatever is wrong, of the caller's own kind.
        link_cure: What to do about a link, for the message.
    """

    def __init__(self, path: Path, *, error: type[Exception], link_cure: str = _LINK_CURE) -> None:
        self.root = path
        self._error = error
        self._link_cure = link_cure

    def has(self, name: str) -> bool:
        """Whether there is anything under this name, be it a link to nothing."""
        try:
            return self.status(name) is not None
        except OSError as failure:
            raise self._refused(name, failure) from failure

    def status(self, name: str) -> os.stat_result | None:
        """What the system says of a name, of a link itself; None if nothing has the name.

        Raises:
            OSError: The system refuses.
            error: A folder on the way is a link, or the name leads out of the folder.
        """
        try:
            with self._parent(name) as (parent, last):
                return os.stat(last, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BinaryIO:
        """Open a file to read its bytes.

        Raises:
            error: The name leads out of the folder, or there is no regular file under it.
        """
        path = self.root / name
        return adopt(self._descriptor(name, READ_FLAGS), path, error=self._error)

    def find(self, name: str) -> BinaryIO | None:
        """Open a file to read its bytes; None if nothing has the name.

        Raises:
            error: As for `open`, unless there is nothing.
        """
        descriptor = self._descriptor_if_there(name, READ_FLAGS)
        return None if descriptor is None else adopt(descriptor, self.root / name, error=self._error)

    def open_to_append(self, name: str) -> BinaryIO:
        """Open a file to write at its end, and to read; it is made if there is none.

        Raises:
            error: It can't be written, or something other than a regular file has the name.
        """
        descriptor = self._descriptor(name, APPEND_FLAGS)
        return adopt(descriptor, self.root / name, error=self._error, mode="a+b")

    def path(self, name: str) -> Path:
        """The path of a regular file inside the folder, for a library that opens it itself.

        Raises:
            error: As for `open`.
        """
        self.open(name).close()
        return self.root / name

    def place(self, name: str) -> Path:
        """The path of a file to be written: what is there already is no link, nor are the folders on the way.

        Raises:
            error: A link or something that is no regular file stands there.
        """
        if self.has(name):
            self.path(name)
        return self.root / name

    def read_bytes(self, name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
        """Read a whole file.

        Raises:
            error: As for `open`; or it is longer than `max_bytes`.
        """
        with self.open(name) as file:
            return read_all(file, self.root / name, error=self._error, max_bytes=max_bytes)

    def read_text(self, name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """Read a text in UTF-8.

        Raises:
            error: As for `read_bytes`; or it isn't UTF-8.
        """
        try:
            return self.read_bytes(name, max_bytes=max_bytes).decode("utf-8")
        except UnicodeDecodeError as failure:
            raise self._error(f"{show(self.root / name)}: not UTF-8 ({failure.reason} at {failure.start})") from failure

    def read_json(self, name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> object:
        """Read a JSON file.

        Raises:
            error: As for `read_bytes`; or it isn't JSON that can be worked with (`longrl_files.json_text`).
        """
        try:
            return parse_json(self.read_bytes(name, max_bytes=max_bytes))
        except UnfitJsonError as failure:
            raise self._error(f"{show(self.root / name)}: not readable as JSON ({failure})") from failure

    def require_no_links(self) -> None:
        """Refuse a folder in which there is a link, before anything is written into it.

        Raises:
            error: There is one directly in it, and the user didn't allow links there.
        """
        if os.path.realpath(self.root) in _followed():
            return
        for name in self.names():
            if (self.root / name).is_symlink():
                raise self._link_refused(self.root / name)

    def names(self, folder: str = ".") -> list[str]:
        """Names of what is directly in a folder, sorted; nothing if there is no such folder.

        Raises:
            error: It is a link or can't be read.
        """
        try:
            with self._folder(folder) as descriptor, os.scandir(descriptor) as entries:
                return sorted(entry.name for entry in entries)
        except FileNotFoundError:
            return []

    def statuses(self, folder: str = ".") -> list[tuple[str, os.stat_result]]:
        """What `names` gives, and what the system says of each, of a link itself."""
        try:
            with self._folder(folder) as descriptor, os.scandir(descriptor) as entries:
                found: list[tuple[str, os.stat_result]] = []
                for entry in entries:
                    with suppress(FileNotFoundError):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
        except FileNotFoundError:
            return []
        return sorted(found, key=itemgetter(0))

    def files(self, folder: str = "", *, skips: Callable[[str], bool] = lambda _: False) -> Iterator[str]:
        """Names of all regular files at and below a folder, relative to the root, folder by folder in order.

        Args:
            folder: Where to begin; the root unless given.
            skips: Names of folders that are left out, whatever they are.

        Raises:
            error: Something is neither a file nor a folder: a link that isn't allowed, a FIFO, a device.
        """
        for last in self.names(folder or "."):
            name = f"{folder}/{last}" if folder else last
            status = self.status(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                if not skips(name):
                    yield from self.files(name, skips=skips)
            elif not (self._is_link_to_folder(name) and skips(name)):
                self.path(name)
                yield name

    def _is_link_to_folder(self, name: str) -> bool:
        path = self.root / name
        return path.is_symlink() and path.is_dir()

    def _descriptor(self, name: str, flags: int) -> int:
        descriptor = self._descriptor_if_there(name, flags)
        if descriptor is None:
            raise self._error(f"{show(self.root / name)}: no such file")
        return descriptor

    def _descriptor_if_there(self, name: str, flags: int) -> int | None:
        try:
            with self._parent(name) as (parent, last):
                return self._open_last(name, parent, last, flags)
        except FileNotFoundError:
            return None

    def _open_last(self, name: str, parent: int, last: str, flags: int) -> int:
        try:
            return os.open(last, flags | os.O_NOFOLLOW, 0o666, dir_fd=parent)
        except FileNotFoundError:
            raise
        except OSError as failure:
            if failure.errno not in _LINK_ERRORS:
                raise self._refused(name, failure) from failure
        target = os.path.realpath(os.fspath(self.root / name))
        if not self._is_allowed(target):
            raise self._link_refused(self.root / name)
        try:
            return os.open(target, flags)
        except OSError as failure:
            raise self._refused(name, failure) from failure

    def _is_allowed(self, target: str) -> bool:
        """Whether a link may lead there."""
        root = os.path.realpath(self.root)
        if root in _followed():
            return True
        blobs = Path(target).parent
        # The root may be a folder of a snapshot, such as the tower of a model in parts.
        return any(above.name == "snapshots" and blobs == above.with_name("blobs") for above in Path(root).parents)

    @contextmanager
    def _parent(self, name: str) -> Generator[tuple[int, str]]:
        """The open folder in which the last part of a name is looked for, and that part."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise self._error(
                f"{show(self.root)}: {show(Path(name))} leads out of the folder; expected a name inside it"
            )
        with self._folder(str(path.parent)) as descriptor:
            yield descriptor, path.name

    @contextmanager
    def _folder(self, name: str) -> Generator[int]:
        """An open folder below the root, reached without a link."""
        is_followed = FOLLOWED_VARIABLE in os.environ and os.path.realpath(self.root) in _followed()
        descriptor = -1
        try:
            try:
                descriptor = os.open(self.root, _FOLDER_FLAGS)
                for part in PurePosixPath(name).parts:
                    inner = os.open(part, _FOLDER_FLAGS | (0 if is_followed else os.O_NOFOLLOW), dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = inner
            except FileNotFoundError:
                raise
            except OSError as failure:
                if (link := self._link_on_the_way(name)) is not None:
                    raise self._link_refused(link) from failure
                raise self._refused(name, failure) from failure
            yield descriptor
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _link_on_the_way(self, name: str) -> Path | None:
        path = self.root
        for part in PurePosixPath(name).parts:
            path = path / part
            if path.is_symlink():
                return path
        return None

    def _refused(self, name: str, failure: OSError) -> Exception:
        return self._error(f"{show(self.root / name)}: can't be opened ({reason_of(failure)})")

    def _link_refused(self, link: Path) -> Exception:
        return self._error(f"{show(link)}: is a link; {self._link_cure}")
