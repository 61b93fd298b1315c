"""The command `import`: what it can be told. What it does is loaded when it is called."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from longvideo_reason_data.records.record import Skill
from longvideo_reason_data.records.splits import SplitFractions


def import_published(
    file: Annotated[Path, tyro.conf.Positional],
    layout: Literal["longvideo-reason", "video-r1"],
    videos: Path,
    output: Path,
    skill: Skill | None = None,
    source: str | None = None,
    license: str = "unknown",  # noqa: A002 - the name of the option
    splits: SplitFractions = SplitFractions(),  # noqa: B008 - tyro shows it as the default
    seed: int = 0,
) -> None:
    """Turn a published dataset into one of this package.

    What can't be used, for example because its video isn't there, is in dropped.jsonl with its reason.

    Example: longvideo-data import Video-R1-260k.json --layout video-r1 --videos Video-R1-data --output video-r1
    --skill temporal

    Args:
        file: The published questions: JSON, JSON lines, CSV, TSV or Parquet.
        layout: How they are laid out.
        videos: Folder that the paths of videos in the file are relative to.
        output: Folder of the dataset; made when it doesn't exist.
        skill: Skill of questions that don't say theirs; such questions are dropped when not given.
        source: Where the videos are from, for the records; what the file says, or the layout, when not given.
        license: Under which licence the videos are, for the records.
        splits: Shares of the splits.
        seed: Decides which video is in which split.
    """
    from longvideo_reason_data.exchange.importing import ImportSettings, import_dataset

    settings = ImportSettings(layout=layout, skill=skill, source=source, license=license, splits=splits, seed=seed)
    manifest = import_dataset(file, videos, output, settings)
    reasons = ", ".join(f"{reason} {count}" for reason, count in manifest["dropped"].items())
    kept, given = manifest["kept"]["questions"], manifest["input"]["questions"]
    print(f"{output}: {kept} of {given} questions kept{f' ({reasons})' if reasons else ''}")
