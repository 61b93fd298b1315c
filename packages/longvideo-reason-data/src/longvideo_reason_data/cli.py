"""The command `longvideo-data`: making, checking and counting datasets of questions about long videos."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from longvideo_reason_data.build_settings import BuildSettings
from longvideo_reason_data.dataset_folder import MANIFEST_NAME, check_dataset, describe_dataset
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.export_command import export
from longvideo_reason_data.import_command import import_published
from longvideo_reason_data.records import describe_invalid
from longvideo_reason_data.splits import SplitFractions, count_videos
from longvideo_reason_data.view_command import view

Folder = Annotated[Path, tyro.conf.Positional]


def timeline(
    output: Path,
    videos: int = 10,
    seconds: float = 32.0,
    seed: int = 0,
    scenes: int | None = None,
    frames_per_second: int = 4,
    questions_per_video: int = 8,
) -> None:
    """Render a seeded world to video files and ask questions about it.

    Nothing is downloaded and no model is asked: events, answers, evidence and reasoning come from the world itself.

    Example: longvideo-data timeline --output world --videos 40 --seconds 32 --seed 0

    Args:
        output: Folder of the dataset; made when it doesn't exist.
        videos: How many videos to render, for all splits together.
        seconds: Length of each video.
        seed: Another seed gives another world.
        scenes: Scenes in each video; one for every eight seconds when not given.
        frames_per_second: Frame rate of the videos.
        questions_per_video: At most so many questions about each.
    """
    from longvideo_reason_data.timeline.dataset import write_timeline_dataset
    from longvideo_reason_data.timeline.world import WorldSettings

    num_scenes = scenes if scenes is not None else max(3, int(seconds / 8))
    settings = WorldSettings(seconds=seconds, num_scenes=num_scenes, frames_per_second=frames_per_second)
    shares = count_videos(videos, SplitFractions())
    with Progress(console=Console(stderr=True)) as progress:
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


def build(
    videos: tuple[Path, ...],
    output: Path,
    base_url: str,
    model: str,
    captioner: str | None = None,
    prompts: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    settings: Annotated[BuildSettings, tyro.conf.arg(name="")] = BuildSettings(),  # noqa: B008 - tyro shows it as the default
) -> None:
    """Turn video files into a dataset with the help of a language model.

    Videos are cut into segments, each segment is described with what is said in it, and from the descriptions
    questions with options or without, evidence and reasoning are written, checked and balanced. Subtitles are taken
    from FILM.srt or FILM.vtt beside a video or from a text track inside it. The videos are hard-linked into
    OUTPUT/videos, or copied when OUTPUT is on another disk.

    Every answer of the model is kept in OUTPUT/responses.jsonl before it is used. Start the same command again after
    an interruption: what was answered is not asked again. The API key is read from OPENAI_API_KEY.

    Example: longvideo-data build --videos films --output dataset --base-url http://localhost:8000/v1 --model my-model

    Example: longvideo-data build --videos a.mp4 b.mkv --output dataset --base-url http://localhost:8000/v1
    --model reasoner --captioner seer --window-seconds 5 --questions.quotas.temporal 3

    Args:
        videos: Video files, or folders that are searched for them.
        output: Folder of the dataset; made when it doesn't exist.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including /v1.
        model: Name of the model that writes the questions.
        captioner: Name of the model that sees the pictures; the same when not given.
        prompts: Folder with prompts (caption.md, question.md, rewrite.md, temporal.md, …) to be used in place of the
            built-in ones.
        engine: "ray" spreads the work over a Ray cluster, that of RAY_ADDRESS or one started here; videos must have
            the same paths on all its machines.
        settings: Further settings.
    """
    from longvideo_reason_data.pipeline import build as build_dataset

    manifest = build_dataset(
        videos,
        output,
        base_url=base_url,
        model=model,
        captioner=captioner,
        prompts_folder=prompts,
        settings=settings,
        engine=engine,
    )
    console = Console()
    for stage, count in manifest["input"].items():
        dropped = manifest["stages"][stage]["dropped"]
        reasons = f" ({', '.join(f'{reason} {number}' for reason, number in dropped.items())})" if dropped else ""
        console.print(f"{stage}: {manifest['kept'][stage]} of {count} kept{reasons}", highlight=False, soft_wrap=True)
    calls = manifest["calls"]
    console.print(f"calls: {calls['made']} made, {calls['cached']} from the journal; see {output / MANIFEST_NAME}")


def check(dataset: Folder) -> None:
    """Hold a dataset to its rules: records, videos and their digests, splits, balance of letters.

    Prints one line per problem and exits with 1 when there is any.

    Example: longvideo-data check dataset

    Args:
        dataset: Folder of the dataset.
    """
    problems = check_dataset(dataset)
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{dataset}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    print(f"{dataset}: sound")


def stats(dataset: Folder) -> None:
    """Print what a dataset holds, as JSON.

    Example: longvideo-data stats dataset

    Args:
        dataset: Folder of the dataset.
    """
    print(json.dumps(describe_dataset(dataset), indent=2))


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What was typed behind the name of the command; of this process when not given.

    Returns:
        0, 1 when something failed, 2 when the request was wrong, 130 when interrupted.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "timeline": timeline,
                "build": build,
                "check": check,
                "stats": stats,
                "view": view,
                "export": export,
                "import": import_published,
            },
            prog="longvideo-data",
            description="Long videos to question-answer pairs with checked chain-of-thought.",
            args=arguments,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValidationError as error:
        print(f"error: {describe_invalid(error)}", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on", file=sys.stderr)
        return 130
    return 0
