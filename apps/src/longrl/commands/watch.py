"""`longrl watch`: a run's page in the browser, until the command is interrupted."""

from pathlib import Path
from typing import Annotated

import tyro


def watch(run: Annotated[Path, tyro.conf.Positional], port: int = 0) -> None:
    """Look into a run in the browser: its curves, and every response with its rewards and frames.

    Live while the run goes on, and afterwards from its files. Only this machine can open the page. Ctrl+C ends the
    command; the run isn't touched. `longrl report RUN` writes the same page as one file.

    Example: longrl watch runs/grpo

    Example: longrl watch quickstart/grpo --port 8080

    Args:
        run: The run's folder, the `output` of `longrl sft`, `longrl grpo` or
            `longrl generate-grpo`.
        port: Port on the loopback address; by default a free one.
    """
    from longrl.watch.server import WatchServer
    from longrl.watch.watched_run import WatchedRun

    with WatchServer(WatchedRun(run), port) as server:
        print(f"{run}: {server.address} (Ctrl+C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
