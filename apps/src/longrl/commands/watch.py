"""`longrl watch`, a run's page in the browser until the command is interrupted, and `longrl report`, pages as files."""

from pathlib import Path
from typing import Annotated

import tyro

from longrl.errors import AppUsageError

Folders = Annotated[tuple[Path, ...], tyro.conf.Positional]


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


def report(runs: Folders, output: Path | None = None) -> None:
    """Write report.html: of a quickstart what it has shown, of any other run its curves and responses.

    Of a quickstart also report.json is written. The page of a run is that of `longrl watch`, as one file. Of several
    quickstarts with different seeds one table is printed and written, as a page and as JSON beside it.

    Example: longrl report quickstart

    Example: longrl report runs/grpo

    Example: longrl report quickstart second third --output seeds.html

    Args:
        runs: The folder of a quickstart, or the `output` of `longrl sft`, `longrl grpo` or
            `longrl generate-grpo`; or those of several quickstarts.
        output: Page about several quickstarts; seeds.html by default.
    """
    if not runs:
        raise AppUsageError("no folder given; expected that of a run or a quickstart: `longrl report quickstart`")
    first, *others = runs
    if others:
        _report_seeds(runs, output or Path("seeds.html"))
    elif output is not None:
        raise AppUsageError(
            f"--output {output}: is for several quickstarts; the page of one is written into its folder"
        )
    else:
        _report_run(first)


def _report_seeds(folders: tuple[Path, ...], page: Path) -> None:
    from longrl.report.seeds import compare_seeds, describe_seeds, write_seeds

    if page.suffix != ".html":
        raise AppUsageError(f"--output {page}: expected a name that ends in .html; the numbers are written beside it")
    table = compare_seeds(folders)
    numbers = write_seeds(table, page)
    for line in [*describe_seeds(table), str(page), str(numbers)]:
        print(line)


def _report_run(run: Path) -> None:
    from longrl.pipeline import STAGES_NAME
    from longrl.report.build import REPORT_NAME, build_report

    if (run / STAGES_NAME / "captions.json").exists():
        again = f"longrl quickstart --world pictures --output {run}"
        raise AppUsageError(f"{run}: a quickstart of the world of pictures, which writes its report itself: `{again}`")
    if (run / STAGES_NAME).is_dir():
        build_report(run)
    else:
        from longrl.watch.page import write_page
        from longrl.watch.watched_run import WatchedRun

        write_page(WatchedRun(run), run / REPORT_NAME)
    print(run / REPORT_NAME)
