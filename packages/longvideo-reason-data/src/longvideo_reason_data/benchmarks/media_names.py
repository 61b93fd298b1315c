"""Which files of a benchmark's folder are the videos and subtitles that its questions name.

Published paths are rarely those of a download: archives unpack into other folders, ids come without an extension, and
containers differ. So a file is looked for by its whole path, then by the end of its path, by its name, and by its name
without an extension. Only names of files inside the folder are compared, so that no published path leads out of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from longrl_files.messages import visible
from longvideo_reason_data.errors import UsageError


class MediaNames:
    """The names of a folder's files of one kind.

    Args:
        names: Paths relative to the folder, with `/`.
        suffixes: The extensions of this kind, in lower case.
    """

    def __init__(self, names: Iterable[str], suffixes: frozenset[str]) -> None:
        self._suffixes = suffixes
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            path = PurePosixPath(name)
            if path.suffix.lower() in suffixes:
                self._by_name[path.name].append(name)
                self._by_stem[path.stem].append(name)

    def find(self, published: str, *, table: str = "") -> str | None:
        """Find a file; None if there is none.

        Args:
            published: Its path or id in a table.
            table: That table; of files with the same name, the one in a folder of the table's name is meant.

        Raises:
            UsageError: There are several, and nothing says which is meant.
        """
        path = PurePosixPath(published)
        # Without its extension only if that is one: an id may contain points.
        stem = path.stem if path.suffix.lower() in self._suffixes else path.name
        found = self._by_name.get(path.name) or self._by_stem.get(stem, [])
        ending = [name for name in found if name == published or name.endswith(f"/{published.lstrip('./')}")]
        candidates = ending or found
        if len(candidates) > 1:
            beside = PurePosixPath(table).stem
            candidates = [name for name in candidates if beside in PurePosixPath(name).parts] or candidates
        if len(candidates) > 1:
            raise UsageError(f"{_shown(candidates)} could all be {visible(published, 80)!r}; keep one of them")
        return candidates[0] if candidates else None


def _shown(names: Sequence[str]) -> str:
    return " and ".join(visible(name, 80) for name in names[:3])
