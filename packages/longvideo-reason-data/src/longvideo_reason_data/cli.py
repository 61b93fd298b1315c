"""The command `longvideo-data`: making, checking and counting datasets of questions about long videos."""

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from longrl_files import folders
from longrl_files.messages import LINE_CHARACTERS, error_line, visible
from longvideo_reason_data.commands.build import build
from longvideo_reason_data.commands.exporting import export
from longvideo_reason_data.commands.filter import filter_dataset, print_notes
from longvideo_reason_data.commands.importing import import_published
from longvideo_reason_data.commands.view import view
from longvideo_reason_data.endings import end_quietly
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.evaluation_sets import read_evaluation_set
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.inspection.statistics import describe_dataset
from longvideo_reason_data.ownership import OWNER_NAME
from longvideo_reason_data.records.record import describe_invalid
from longvideo_reason_data.records.splits import SplitFractions, count_videos

Folder = Annotated[Path, tyro.conf.Positional]


def timeline(
    output: Path,
    videos: int = 10,
    seconds: float = 32.0,
    seed: int = 0,
    scenes: int | None = None,
    frames_per_second: int = 4,
    questions_per_video: int = 8,
    sound: bool = False,
) -> None:
    """Render a seeded world to video files and ask questions about it.

    Nothing is downloaded and no model is used: events, answers, evidence and reasoning come from the world itself.

    Example: longvideo-data timeline --output world --videos 40 --seconds 32 --seed 0

    Args:
        output: Folder of the dataset; it must not exist, unless an interrupted rendering left it without questions.
        videos: Number of videos to render, for all splits together; with fewer than 10 some split has none.
        seconds: Length of each video.
        seed: Seed of the world.
        scenes: Scenes in each video; by default one for every eight seconds.
        frames_per_second: Frame rate of the videos.
        questions_per_video: Maximum number of questions per video.
        sound: Let a tone sound during each scene, and ask what happens meanwhile; most questions then need pictures and
            sound.
    """
    from longvideo_reason_data.timeline.dataset import write_timeline_dataset
    from longvideo_reason_data.timeline.world import WorldSettings

    if videos < 1:
        raise UsageError(f"--videos {videos}: expected 1 or more")
    if questions_per_video < 1:
        raise UsageError(f"--questions-per-video {questions_per_video}: expected 1 or more")
    if output.exists() and (not output.is_dir() or {path.name for path in output.iterdir()} - {"videos", OWNER_NAME}):
        raise UsageError(f"{output}: already exists; remove it or choose another folder with --output")
    if scenes is None:
        settings = WorldSettings.of_length(seconds, frames_per_second=frames_per_second, sound=sound)
    else:
        settings = WorldSettings(seconds=seconds, num_scenes=scenes, frames_per_second=frames_per_second, sound=sound)
    shares = count_videos(videos, SplitFractions())
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("videos", total=videos)
        records = write_timeline_dataset(
            output,
            settings,
            videos=shares,
            questions_per_video=questions_per_video,
            seed=seed,
            progress=lambda finished, total: progress.update(bar, completed=finished, total=total),
        )
    print(f"{output}: {len(records)} questions about {videos} videos")
    empty = [str(split) for split, share in shares.items() if not share]
    if empty:
        print(
            f"no video in {' and '.join(empty)}: {videos} are too few for every split, 10 are enough", file=sys.stderr
        )


def check(dataset: Folder, benchmarks: tuple[Path, ...] = (), follow_links: bool = False) -> None:
    """Check a dataset: records, videos, splits, balance, shortcuts, repeated questions, evaluation sets.

    Prints one line per problem and exits with 1 if there is any. Notes say which splits are empty or too small to
    measure with; they are no problems.

    Example: longvideo-data check dataset

    Example: longvideo-data check dataset --benchmarks videomme.parquet longvideobench.jsonl

    Args:
        dataset: Folder of the dataset.
        benchmarks: Evaluation sets whose questions and videos must not be in the dataset: JSON, JSON lines, CSV, TSV or
            Parquet.
        follow_links: Follow links in the dataset, which may lead anywhere; without it they are refused.
    """
    if follow_links:
        folders.follow_links(dataset)
    problems = check_dataset(dataset, benchmarks)
    for path in benchmarks:
        print(f"{path}: {read_evaluation_set(path).summary} compared")
    print_notes(dataset)
    for problem in problems:
        print(visible(problem, LINE_CHARACTERS))
    if problems:
        raise DataError(f"{dataset}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    print(f"{dataset}: sound")


def stats(dataset: Folder, follow_links: bool = False) -> None:
    """Print statistics of a dataset as JSON.

    Example: longvideo-data stats dataset

    Args:
        dataset: Folder of the dataset.
        follow_links: Follow links in the dataset, which may lead anywhere; without it they are refused.
    """
    if follow_links:
        folders.follow_links(dataset)
    print(json.dumps(describe_dataset(dataset), indent=2))


COMMANDS = {
    "timeline": timeline,
    "build": build,
    "filter": filter_dataset,
    "check": check,
    "stats": stats,
    "view": view,
    "export": export,
    "import": import_published,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments after the command's name; by default those of this process.

    Returns:
        0, or 1 for a failure, 2 for a wrong request, 130 for an interruption, 141 for a closed output pipe.
    """
    return end_quietly(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="longvideo-data",
            description="Long videos to question-answer pairs with checked chain-of-thought.",
            args=arguments,
            config=(tyro.conf.EnumChoicesFromValues,),
        )
    except DataError as error:
        print(error_line(error), file=sys.stderr)
        return error.exit_code
    except ValidationError as error:
        print(f"error: {describe_invalid(error)}", file=sys.stderr)
        return UsageError.exit_code
    return 0
