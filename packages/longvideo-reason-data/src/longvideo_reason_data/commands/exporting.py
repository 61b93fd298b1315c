"""The command `export`: its options. The implementation is loaded when it is called."""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def export(
    dataset: Annotated[Path, tyro.conf.Positional],
    to: Literal["hf", "jsonl", "trl", "verl", "easyr1"],
    output: Path | None = None,
    video_root: str | None = None,
    force: bool = False,
    follow_links: bool = False,
) -> None:
    """Write a dataset in another layout, with a dataset card, ready to be published or trained on.

    hf is Parquet for datasets.load_dataset, jsonl has one object per line; trl, verl and easyr1 are the formats of
    these trainers. Every layout keeps the whole record.

    Example: longvideo-data export dataset --to hf

    Example: longvideo-data export dataset --to verl --output verl-data --video-root file:///data/dataset

    Args:
        dataset: Folder of the dataset.
        to: The layout.
        output: Folder to write; by default exports/LAYOUT in the dataset's folder.
        video_root: Location of the dataset's folder for the trainer; then videos aren't copied. Without it, paths of
            videos are relative to the output, and a trainer finds them if it is started there.
        force: Replace an earlier export in that folder.
        follow_links: Follow links in the dataset, which may lead anywhere; without it they are refused.
    """
    from longrl_files import folders
    from longvideo_reason_data.exchange.export_layouts import LAYOUTS
    from longvideo_reason_data.exchange.exporting import export_dataset

    if follow_links:
        folders.follow_links(dataset)
    folder = output or dataset / "exports" / to
    counts = export_dataset(dataset, folder, to, video_root=video_root, force=force)
    print(f"{folder}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
    if LAYOUTS[to].names_media and video_root is None:
        print(
            f"paths of media are relative to {folder}: start the trainer there, or export with --video-root, "
            "which makes them work from anywhere"
        )
