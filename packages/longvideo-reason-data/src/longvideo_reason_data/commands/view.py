"""The command `view`: its options. The implementation is loaded when it is called."""

from pathlib import Path
from typing import Annotated

import tyro

from longvideo_reason_data.errors import DataError

VIEW_NAME = "view.html"


def view(
    dataset: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    thumbnails: int = 600,
    follow_links: bool = False,
) -> None:
    """Write a browser of a dataset: one HTML file that works without a network.

    With many questions the file stays small, and a folder of parts beside it is read as they are looked at.

    It shows each video's timeline with segments, descriptions, evidence and frames, questions with options, reasoning
    and how models answered them, and what was dropped for which reason.

    Example: longvideo-data view dataset

    Args:
        dataset: Folder of the dataset.
        output: The file; by default view.html in the dataset's folder.
        thumbnails: Maximum number of images in the page, for all videos together; 0 for none.
        follow_links: Follow links in the dataset, which may lead anywhere; without it they are refused.
    """
    from longrl_files import folders
    from longvideo_reason_data.view.page import write_page

    if follow_links:
        folders.follow_links(dataset)
    path = output or folders.ForeignFolder(dataset, error=DataError).place(VIEW_NAME)
    contents = write_page(dataset, path, most_thumbnails=thumbnails)
    print(
        f"{path}: {contents['counts']['questions']} questions about {contents['counts']['videos']} videos, "
        f"{contents['num_dropped']} dropped items, {path.stat().st_size / 1e6:.1f} MB"
        + (f"; keep the folder {contents['parts']['folder']} beside it" if "parts" in contents else "")
    )
