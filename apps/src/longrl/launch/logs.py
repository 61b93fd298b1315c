"""Where the output of every rank goes: two files named after its rank, and of rank 0 also to the terminal.

torchrun finds `RankLogs` under the name `longrl` (`--logs-specs longrl`), among the entry points that it documents for
this purpose. Its own folders are named after random numbers and places within a node.
"""

import os
from collections import deque
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, Std

from longrl.errors import AppError
from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_files.own_folders import OwnFolder

__all__ = ["LINE_PREFIX", "RankLogs", "last_lines", "make_logs"]

LINE_PREFIX = "[rank ${rank}] "
"""torchrun's template for what precedes a line on the terminal."""
MOST_LINES, LINE_CHARACTERS, MOST_BYTES = 12, 300, 2**16
_LINK_CURE = "remove it, or choose another `output`"


class RankLogs(LogsSpecs):
    """The files of this node's ranks; see torch's `LogsSpecs` for the arguments, of which only the folder counts."""

    def __init__(
        self,
        log_dir: str | None = None,
        redirects: Std | dict[int, Std] = Std.NONE,
        tee: Std | dict[int, Std] = Std.NONE,
        local_ranks_filter: set[int] | None = None,
    ) -> None:
        super().__init__(log_dir, redirects, tee, local_ranks_filter)
        self._folder = Path(log_dir or "logs")

    @property
    def root_log_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The files of ranks with these environments, by their places on this node."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found = LogsDest()
        for place, environment in envs.items():
            rank = int(environment["RANK"])
            found.stdouts[place] = str(self._folder / log_name(rank, "out"))
            found.stderrs[place] = str(self._folder / log_name(rank, "err"))
            found.error_files[place] = os.devnull
            environment["TORCHELASTIC_ERROR_FILE"] = ""
            if rank == 0:
                found.tee_stdouts[place], found.tee_stderrs[place] = found.stdouts[place], found.stderrs[place]
        found.filtered_stdout = found.filtered_stderr = os.devnull
        return found


def log_name(rank: int, stream: str) -> str:
    """The file of a rank's standard output ("out") or error stream ("err")."""
    return f"rank-{rank}.{stream}"


def make_logs(folder: Path, start: str) -> Path:
    """Make the folder of a start; it may be there.

    Args:
        folder: The folder of all starts.
        start: The name of this one.

    Raises:
        AppError: It can't be made, or is a link.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        OwnFolder(folder.parent, error=AppError, link_cure=_LINK_CURE).make_folder(folder.name)
        OwnFolder(folder, error=AppError, link_cure=_LINK_CURE).make_folder(start)
    except OSError as error:
        raise AppError(f"{folder}: can't be made ({error.strerror}); choose another `output`") from error
    return folder / start


def last_lines(logs: Path, rank: int) -> list[str]:
    """The last lines that a rank wrote, to its error stream or else to its output, each safe to be shown."""
    files = ForeignFolder(logs, error=AppError, link_cure=_LINK_CURE)
    for stream in ("err", "out"):
        file = files.find(log_name(rank, stream))
        if file is None:
            continue
        with file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_BYTES))
            text = file.read(MOST_BYTES).decode("utf-8", "replace")
        lines = deque((line for line in text.splitlines() if line.strip()), maxlen=MOST_LINES)
        if lines:
            return [visible(line, LINE_CHARACTERS) for line in lines]
    return []
