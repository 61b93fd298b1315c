"""How a command is run against something hostile: in a process of its own, bounded, beside a folder it must not touch.

Started as a program, this module loads the commands once and forks for every run, and afterwards loads what that run
had to load, so that hundreds of them take a fraction of a second each. A run is held to the promise of SECURITY.md: an
orderly end within its time and memory, at most one short line on standard error, and nothing changed outside the
folders that the command line names.
"""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from threading import Thread
from urllib.parse import quote

KEY = "sk-a-key-that-nobody-may-see"
"""The key for servers that every command is given."""
MAX_SECONDS = 60.0  # of the clock, on a machine busy with other tests; by itself each run ends within 20
MAX_PROCESSOR_SECONDS = 20.0
MAX_MEMORY_BYTES = 2**30
MAX_LINE_CHARACTERS = 400
SERVING = ("watch",)
"""Commands that go on until they are interrupted."""
LOADED_ONCE = ("longrl", "longvideo_reason_data", "mrsp_engine", "transformers.models")
"""What is loaded for later runs as well: nothing that starts threads, which a fork would lack."""
ADDRESS = "http://127.0.0.1:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended.

    Attributes:
        status: What it exited with; None if it had to be killed.
        output: What it wrote to standard output. For a command that serves a page, what the page got is in it.
        error: What it wrote to standard error.
        memory_bytes: Most memory that it had beyond what it began with.
        processor_seconds: What it took of processors, with the processes that it started.
    """

    status: int | None
    output: str
    error: str
    memory_bytes: int
    processor_seconds: float


Run = Callable[[Sequence[str]], Ending]


class Forks:
    """A program that runs commands in forks of itself.

    Args:
        module: The command's module, with `main(arguments)`.
        loaded: What the command loads when it is called; here it is loaded once.
        folder: For what the runs say.
    """

    def __init__(self, module: str, loaded: Sequence[str], folder: Path) -> None:
        self._folder = folder
        command = [sys.executable, str(Path(__file__)), module, *loaded]
        environment = os.environ | {"OPENAI_API_KEY": KEY}
        self._program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, arguments: Sequence[str]) -> Ending:
        """Run the command once."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        request = {"arguments": [str(word) for word in arguments], "folder": str(self._folder)}
        self._program.stdin.write(json.dumps(request) + "\n")
        self._program.stdin.flush()
        answer = json.loads(self._program.stdout.readline())
        texts = {name: (self._folder / name).read_text(errors="surrogateescape") for name in ("output", "error")}
        return Ending(**answer, **texts)

    def close(self) -> None:
        """End the program."""
        self._program.kill()
        self._program.communicate()


def require_orderly(ending: Ending, *, most_lines: int = 1) -> None:
    """Hold an ending to the promise.

    Args:
        ending: How a command ended.
        most_lines: Lines on standard error; more than one for a command that lists all that is wrong.
    """
    assert ending.status in (0, 1, 2), ending
    # Longer work says how far it is; such a line is indented.
    lines = [line for line in ending.error.splitlines() if not line.startswith("  ")]
    assert len(lines) <= most_lines, ending.error
    assert ending.status == 0 or lines, ending
    for line in lines:
        assert len(line) < MAX_LINE_CHARACTERS, line
        assert line.isprintable(), line
    assert "Traceback" not in ending.output + ending.error
    assert all(line.isprintable() for line in ending.output.splitlines()), ending.output
    assert ending.memory_bytes <= MAX_MEMORY_BYTES, ending
    assert ending.processor_seconds <= MAX_PROCESSOR_SECONDS, ending


def snapshot(folder: Path) -> dict[str, str]:
    """What is in a folder, by name: what each file holds, where each link leads, when it was changed."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file() and status.st_size < 2**28:  # some claim to be endless
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = f"{status.st_mode:o} {status.st_mtime_ns} {content}"
    return found


def _serve(module: str, loaded: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some libraries print when they are loaded
    for name in (module, *loaded):
        import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        modules = Path(request["folder"], "modules")
        modules.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            _become(module, request["arguments"], request["folder"])
        answer = _wait(child)
        for name in modules.read_text().split() if modules.exists() else ():
            if not name.startswith(LOADED_ONCE):
                continue
            with suppress(Exception):
                import_module(name)
        print(json.dumps(answer), file=answers, flush=True)


def _become(module: str, arguments: Sequence[str], folder: str) -> None:
    """Turn a forked process into the command; what it says, and which modules it loaded, goes to files."""
    before = set(sys.modules)
    for descriptor, name in ((0, os.devnull), (1, f"{folder}/output"), (2, f"{folder}/error")):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if descriptor else os.O_RDONLY
        os.dup2(os.open(name, flags, 0o600), descriptor)
    status: object = 70
    if arguments[0] in SERVING:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        Thread(target=_visit, args=(f"{folder}/output",), daemon=True).start()
    try:
        status = import_module(module).main(list(arguments))
    except SystemExit as ending:  # of the parser of arguments
        status = ending.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    Path(folder, "modules").write_text("\n".join(name for name in sys.modules if name not in before))
    os._exit(status if isinstance(status, int) else 0)


def _visit(output: str) -> None:
    """Look at the page that this process serves as a browser does, write down what came, and interrupt the command."""
    while ADDRESS not in Path(output).read_text():
        time.sleep(0.01)
    port = Path(output).read_text().partition(ADDRESS)[2].partition("/")[0]
    connection = HTTPConnection("127.0.0.1", int(port), timeout=MAX_SECONDS)
    asked, told = ["/", "/state"], list[str]()
    with suppress(OSError):
        while asked:
            connection.request("GET", asked.pop(0))
            answer = connection.getresponse()
            told.append(answer.read().decode(errors="replace"))
            with suppress(ValueError, TypeError, KeyError):
                asked += [f"/groups/{quote(str(row['group_id']))}" for row in json.loads(told[-1])["groups"][:2]]
    print(*(ascii(text) for text in told), sep="\n", flush=True)
    os.kill(os.getpid(), signal.SIGINT)


def _wait(child: int) -> dict[str, float | None]:
    begun_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    deadline = time.monotonic() + MAX_SECONDS
    usage: resource.struct_rusage | None = None
    status = 0
    while usage is None:
        pid, status, found = os.wait4(child, os.WNOHANG)
        if pid:
            usage = found
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.005)
    memory_bytes = max(0, usage.ru_maxrss * 1024 - begun_bytes)
    return {
        "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "memory_bytes": memory_bytes,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
    }


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
