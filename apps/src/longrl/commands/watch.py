"""`longrl watch`: a run's page in the browser, until the command is interrupted."""

from pathlib import Path
from typing import Annotated

import tyro


def watch(run: Annotated[Path, tyro.conf.Positional], port: int = 0) -> None:
    """Look into a run in the browser: its curves, and every response with its rewards and frames.

    Live while the run goes on, and afterwards from its files. Of a quickstart or `longrl start` it shows the stages,
    some of the videos, and the run that is trained now. Only this machine can open the page. Ctrl+C ends the command;
    the run isn't touched. `longrl report RUN` writes the page of a run as one file.

    Example: longrl watch runs/grpo

    Example: longrl watch quickstart --port 8080

    Args:
        run: The run's folder, the `output` of `longrl sft`, `longrl grpo` or
            `longrl generate-grpo`; or that of a quickstart or `longrl start`, once it has begun.
        port: Port on the loopback address; by default a free one.
    """
    from longrl.watch.server import WatchServer
    from longrl.watch.watched_pipeline import watch_folder

    with WatchServer(watch_folder(run), port) as server:
        print(f"{run}: {server.address} (Ctrl+C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
