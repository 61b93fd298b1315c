"""Questions about several media can be exported to every layout and read back, and imported from published lists."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from several_media import SHOWN, draw_picture, write_album

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.export_layouts import LAYOUTS
from longvideo_reason_data.exchange.exporting import export_dataset, read_export
from longvideo_reason_data.exchange.importing import ImportSettings, import_dataset
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.records.folder import hash_records, read_dataset
from longvideo_reason_data.records.medium import MediumKind
from longvideo_reason_data.records.record import Skill, write_records


@pytest.fixture
def album(tmp_path: Path, make_video: Any) -> Path:
    write_album(tmp_path / "dataset", make_video)
    return tmp_path / "dataset"


def texts_of(folder: Path, name: str) -> tuple[list[list[str]], list[str]]:
    """The media of each row in the order in which its program uses them, and the text after them."""
    rows = datasets.load_dataset(str(folder), cache_dir=str(folder / "cache"))["train_rl"].to_list()
    media: list[list[str]] = []
    words: list[str] = []
    for row in rows:
        if name == "trl":
            blocks = row["prompt"][0]["content"]
            media.append([block[block["type"]] for block in blocks[:-1]])
            words.append(blocks[-1]["text"])
            continue
        text = row["prompt"][0]["content"] if name == "verl" else row["problem"]
        lists = {kind: list(row.get(f"{kind}s") or ()) for kind in ("video", "image")}
        shown: list[str] = []
        while text.startswith(("<video>", "<image>")):
            kind, text = text[1:6], text[7:]
            place = lists[kind].pop(0)
            shown.append(place[kind] if name == "verl" else place)
        assert lists == {"video": [], "image": []}
        media.append(shown)
        words.append(text)
    return media, words


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "easyr1"])
def test_every_layout_brings_all_media_along_in_order(album: Path, tmp_path: Path, name: Any) -> None:
    records = read_dataset(album)
    output = tmp_path / name
    assert export_dataset(album, output, name) == {"train_rl": len(SHOWN)}
    assert read_export(output, name) == records
    for medium in {medium for record in records for medium in record.media}:
        assert digest_file(output / medium.path) == medium.digest
    listed = [json.loads(line) for line in (output / "videos.jsonl").read_text().splitlines()]
    assert sorted((item["kind"], item["path"]) for item in listed) == sorted(
        {(str(medium.kind), medium.path) for record in records for medium in record.media}
    )
    assert "about 2 videos (0.00 hours) and 3 pictures" in (output / "README.md").read_text()
    if name in ("trl", "verl"):
        media, words = texts_of(output, name)
        assert media == [[medium.path for medium in record.media] for record in records]
        assert [text.split("\n")[0] for text in words] == [record.question for record in records]


@pytest.mark.parametrize("kind", MediumKind)
def test_easyr1_takes_one_kind_of_media_per_dataset(album: Path, tmp_path: Path, kind: MediumKind) -> None:
    records = read_dataset(album)
    with pytest.raises(UsageError, match=r"images and videos, of which .* easyr1 takes one kind"):
        export_dataset(album, tmp_path / "mixed", "easyr1")
    alike = [record for record in records if {medium.kind for medium in record.media} == {kind}]
    write_records(album / "records.parquet", alike)
    export_dataset(album, tmp_path / "out", "easyr1")
    assert read_export(tmp_path / "out", "easyr1") == alike
    names = pq.read_schema(tmp_path / "out" / "data" / "train_rl.parquet").names
    assert (f"{kind}s" in names, ("videos" in names) + ("images" in names)) == (True, 1)
    assert texts_of(tmp_path / "out", "easyr1")[0] == [[m.path for m in record.media] for record in alike]


@pytest.mark.parametrize(
    ("title", "change"),
    [
        ("two videos", lambda row: row["videos"].reverse()),
        ("two videos", lambda row: row["videos"].pop()),
        ("a picture between videos", lambda row: row["images"].clear()),
        ("a picture between videos", lambda row: row["prompt"][0].update(content="<video><video><image>Where?")),
        ("a picture", lambda row: row.update(videos=[{"type": "video", "video": "videos/one.mp4"}])),
    ],
)
def test_a_row_whose_media_are_not_those_of_its_record_is_refused(
    album: Path, tmp_path: Path, title: str, change: Any
) -> None:
    export_dataset(album, tmp_path / "out", "verl")
    path = tmp_path / "out" / "data" / "train_rl.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(next(row for row in rows if row["extra_info"]["question_id"] == title))
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(DataError, match=rf"\({title}\): .*"):
        read_export(tmp_path / "out", "verl")


def test_an_export_of_the_version_before_is_refused_in_one_line(album: Path, tmp_path: Path) -> None:
    export_dataset(album, tmp_path / "out", "jsonl")
    path = tmp_path / "out" / "data" / "train_rl.jsonl"
    path.write_text(path.read_text().replace('"schema_version": 3', '"schema_version": 2'))
    with pytest.raises(DataError, match=r"row 0: has version 2, .* export the dataset again"):
        read_export(tmp_path / "out", "jsonl")


# Published files.

OPTIONS = "A. a boat\nB. a train\nC. a horse\nD. a bicycle"


def bring_in(tmp_path: Path, layout: Any, items: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
    (tmp_path / "published.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    settings = ImportSettings(layout=layout, skill=Skill.PLOT)
    manifest = import_dataset(tmp_path / "published.jsonl", tmp_path / "media", tmp_path / "out", settings)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    records = read_dataset(tmp_path / "out")
    assert manifest["input"]["questions"] == len(items) == len(records) + len(dropped)
    assert manifest["dataset_hash"] == hash_records(records)
    return records, [item["reason"] for item in dropped]


@pytest.fixture
def media(tmp_path: Path, make_video: Any) -> Path:
    make_video("media/one.mp4", num_frames=25)
    make_video("media/two.mp4", num_frames=30, first_number=900)
    draw_picture(tmp_path / "media" / "red.png", "left", "red")
    draw_picture(tmp_path / "outside.png", "above", "red")
    (tmp_path / "media" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "media" / "damaged.png").write_bytes(b"no picture")
    return tmp_path / "media"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("{}", ["one.mp4", "two.mp4", "red.png"]),
        ("<image><video>\n<video> {}", ["red.png", "one.mp4", "two.mp4"]),
        ("<video>{}\n<image><video>", ["one.mp4", "red.png", "two.mp4"]),
    ],
)
def test_lists_of_media_are_taken_in_the_order_of_their_places(
    media: Path, tmp_path: Path, words: str, expected: list[str]
) -> None:
    question = "What do all of them leave on?"
    item = {"problem": words.format(question) + "\n" + OPTIONS, "answer": "A", "reasoning": "They sail."}
    (record,), dropped = bring_in(
        tmp_path, "longvideo-reason", [item | {"videos": ["one.mp4", "two.mp4"], "images": ["red.png"]}]
    )
    assert dropped == []
    assert record.question == question
    assert [medium.digest for medium in record.media] == [digest_file(media / name) for name in expected]
    for medium in record.media:
        assert (medium.kind is MediumKind.IMAGE) == medium.path.startswith("images/")
        assert digest_file(tmp_path / "out" / medium.path) == medium.digest
    assert [p for p in check_dataset(tmp_path / "out") if "reasoning" not in p] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"videos": None}, "field_missing"),
        ({"videos": []}, "field_missing"),
        ({"videos": ["one.mp4", 7]}, "field_missing"),
        ({"images": ["missing.png"]}, "image_missing"),
        ({"images": ["damaged.png"]}, "image_unreadable"),
        ({"images": ["link.png"]}, "image_outside"),
        ({"images": ["../outside.png"]}, "image_outside"),
        ({"images": ["one.mp4"]}, "image_unreadable"),
        ({"videos": ["red.png"]}, "video_unreadable"),
        ({"problem": "<video><video> Where?\n" + OPTIONS}, "media_unclear"),
        ({"problem": "<image><video> Where?\n" + OPTIONS}, "media_unclear"),
        ({"problem": "Is <video> the first?\n" + OPTIONS}, "placeholder_inside"),
    ],
)
def test_a_question_of_whose_media_one_cant_be_used_is_dropped(
    media: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    good = {"problem": "Where?\n" + OPTIONS, "answer": "A", "videos": ["one.mp4"]}
    bad = {name: value for name, value in (good | changes).items() if value is not None}
    records, dropped = bring_in(tmp_path, "longvideo-reason", [good, bad])
    assert (len(records), dropped) == (1, [reason])
    assert sorted(path.name[:3] for path in (tmp_path / "out").rglob("*-*.*")) == ["one"]


def test_video_r1_has_pictures_too(media: Path, tmp_path: Path) -> None:
    item = {"problem": "Where?", "options": OPTIONS.split("\n"), "solution": "<answer>B</answer>", "path": "./red.png"}
    records, dropped = bring_in(
        tmp_path, "video-r1", [item | {"data_type": "image"}, item | {"data_type": "video", "path": "one.mp4"}]
    )
    assert dropped == []
    assert [record.media[0].kind for record in records] == [MediumKind.IMAGE, MediumKind.VIDEO]


def test_questions_that_share_a_medium_come_into_one_split(media: Path, tmp_path: Path, make_video: Any) -> None:
    names = [f"film{number}.mp4" for number in range(12)]
    for number, name in enumerate(names):
        make_video(f"media/{name}", num_frames=5, first_number=100 * number)
    item = {"problem": "Where?\n" + OPTIONS, "answer": "A"}
    pairs = [[names[number], names[number + 1]] for number in (0, 1, 2, 4, 5, 8, 9, 10)]
    records, _ = bring_in(tmp_path, "longvideo-reason", [item | {"videos": pair} for pair in [*pairs, [names[7]]]])
    splits: dict[str, set[str]] = {}
    for record in records:
        for digest in record.digests:
            splits.setdefault(digest, set()).add(record.split)
    assert all(len(found) == 1 for found in splits.values())
    assert not any("several splits" in problem for problem in check_dataset(tmp_path / "out"))
