"""A dataset whose questions are about several videos and images, for tests of everything that reads records."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.records.medium import MediumKind, RecordMedium
from longvideo_reason_data.records.record import Interval, QuestionRecord, Skill, Split, write_records

SHOWN = {
    "two videos": ("one.mp4", "two.mp4"),
    "a video and a picture": ("one.mp4", "red.png"),
    "three pictures": ("red.png", "blue.jpg", "green.webp"),
    "a picture between videos": ("two.mp4", "blue.jpg", "one.mp4"),
    "the same video twice": ("two.mp4", "two.mp4"),
    "a picture": ("green.webp",),
    "a video": ("one.mp4",),
}
SECONDS = {"one.mp4": 4.0, "two.mp4": 2.0}
_PEOPLE = ("baker", "smith", "judge", "nurse", "miner", "tailor", "sailor")
_PLACES = {"red.png": "left", "blue.jpg": "right", "green.webp": "below"}
_BOXES = {"left": (4, 4, 30, 60), "right": (66, 4, 92, 60), "below": (4, 44, 92, 60), "above": (4, 4, 92, 20)}


def draw_picture(path: Path, place: str, colour: str) -> Path:
    """An image of a box at a given position, so that two of them differ even without their colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).rectangle(_BOXES[place], fill=colour)
    image.save(path)
    return path


def write_album(folder: Path, make_video: Any, *, split: Split = Split.TRAIN_RL) -> dict[str, QuestionRecord]:
    """Write the dataset; `make_video` writes below its own folder, which has to be that of `folder`.

    Returns:
        A question for each entry of `SHOWN`.
    """
    media: dict[str, RecordMedium] = {}
    for place, (name, seconds) in enumerate(SECONDS.items()):
        path = make_video(f"{folder.name}/videos/{name}", num_frames=int(25 * seconds), first_number=900 * place)
        media[name] = RecordMedium(path=f"videos/{name}", digest=digest_file(path), duration_seconds=seconds)
    for name, place in _PLACES.items():
        path = draw_picture(folder / "images" / name, place, name.partition(".")[0])
        media[name] = RecordMedium(kind=MediumKind.IMAGE, path=f"images/{name}", digest=digest_file(path))
    records = {
        title: _make_question(place, title, [media[name] for name in names], split)
        for place, (title, names) in enumerate(SHOWN.items())
    }
    write_records(folder / "records.parquet", records.values())
    return records


def _make_question(place: int, title: str, media: list[RecordMedium], split: Split) -> QuestionRecord:
    evidence = [
        Interval(start_seconds=0.4, end_seconds=1.4, medium=number)
        for number, medium in enumerate(media)
        if medium.kind is MediumKind.VIDEO
    ]
    return QuestionRecord(
        question_id=title,
        media=tuple(media),
        split=split,
        skill=list(Skill)[place % 4],
        question=f"Where is the lantern of the {_PEOPLE[place]}?",
        options=("on the shelf", "in the cellar", "at the gate", "by the river"),
        answer="ABCD"[place % 4],
        evidence=tuple(evidence),
        reasoning="At 1.0 s it hangs there and nowhere else."
        if evidence
        else "It hangs there and it hangs nowhere else.",
        source="made for this test",
        license="CC0-1.0",
    )
