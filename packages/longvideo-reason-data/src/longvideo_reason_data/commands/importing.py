"""The command `import`: its options. The implementation is loaded when it is called."""

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
        layout: Their layout.
        videos: Folder to which the paths of videos in the file are relative.
        output: Folder of the dataset; created if it doesn't exist.
        skill: Skill of questions without one; by default such questions are dropped.
        source: Source of the videos, for the records; by default what the file says, or the layout.
        license: Licence of the videos, for the records.
        splits: Shares of the splits.
        seed: Determines the split of each video.
    """
    from longvideo_reason_data.exchange.importing import ImportSettings, import_dataset

    settings = ImportSettings(layout=layout, skill=skill, source=source, license=license, splits=splits, seed=seed)
    manifest = import_dataset(file, videos, output, settings)
    reasons = ", ".join(f"{reason} {count}" for reason, count in manifest["dropped"].items())
    kept, given = manifest["kept"]["questions"], manifest["input"]["questions"]
    print(f"{output}: {kept} of {given} questions kept{f' ({reasons})' if reasons else ''}")
