"""Questions about several media: what a model sees, which questions are equal, what leaks."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from several_media import SHOWN, draw_picture, write_album

from longvideo_reason_data.cli import main
from longvideo_reason_data.filtering.by_answers import FilterModels, QuestionFilter
from longvideo_reason_data.filtering.by_words import Filtered
from longvideo_reason_data.filtering.decontamination import Net, find_contamination, fingerprint_records
from longvideo_reason_data.filtering.evaluation_sets import read_evaluation_set
from longvideo_reason_data.filtering.near_duplicates import find_repeated_questions
from longvideo_reason_data.filtering.settings import FilterSettings, Thresholds
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.inspection.statistics import describe_dataset
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.media.fingerprints import find_same_footage
from longvideo_reason_data.prompts.templates import ANSWERING_PROMPTS, load_prompts
from longvideo_reason_data.records.drop_reasons import Reason
from longvideo_reason_data.records.pass_rates import Condition
from longvideo_reason_data.records.record import Interval, QuestionRecord, Split, write_records

Album = dict[str, QuestionRecord]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


@pytest.fixture
def album(folder: Path, make_video: Any) -> Album:
    return write_album(folder, make_video)


NAMED = tuple(condition for condition in Condition if condition not in (Condition.REASONING, Condition.ROLLOUTS))


def run(folder: Path, base_url: str, *records: QuestionRecord, captions: dict[str, list[str]]) -> Filtered:
    async def asked() -> Filtered:
        with ResponseCache(folder / "responses.jsonl") as cache:
            async with LanguageModel(base_url, cache, num_attempts=1) as client:
                return await QuestionFilter(
                    client=client,
                    models=FilterModels(answerer="model"),
                    prompts=load_prompts(None, ANSWERING_PROMPTS),
                    settings=FilterSettings(
                        num_samples=1,
                        num_full_frames=8,
                        num_few_frames=4,
                        num_evidence_frames=6,
                        conditions=NAMED,
                        thresholds=Thresholds(max_blind_rate=1, max_single_frame_rate=1),
                    ),
                    captions=captions,
                ).run(folder, records)

    return asyncio.run(asked())


def shown_to(server: Any) -> list[tuple[str, list[str]]]:
    """What came before each question: its text, and its names, times and images in order."""
    shown: list[tuple[str, list[str]]] = []
    for body in server.bodies:
        parts = body["messages"][-1]["content"]
        said = parts[-1]["text"].partition("\n\n")[0]
        titles = [part["text"] if part["type"] == "text" else "picture" for part in parts[:-1]]
        shown.append((said, [re.sub(r"^\[\d+\.\d s\]$", "time", title) for title in titles]))
    return sorted(shown)


def right_answer(record: QuestionRecord) -> Any:
    right = record.options["ABCD".index(record.answer)]

    def reply(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"][-1]["text"]
        letter = re.search(rf"^([A-D])\. {right}$", text, re.MULTILINE)
        return f"<answer>{letter.group(1) if letter else 'none'}</answer>"

    return reply


FRAMES = ["time", "picture"]


def test_all_media_are_shown_in_order_and_named(album: Album, folder: Path, server: Any) -> None:
    record = album["a picture between videos"]
    captions = {
        digest: [f"[0.0 s to 2.0 s] Part {place}."] for place, digest in enumerate(record.digests) if place != 1
    }
    server.reply = right_answer(record)
    (kept,) = run(folder, server.base_url, record, captions=captions).kept
    assert {rate.condition for rate in kept.pass_rates} == set(NAMED) - {Condition.CAPTIONS}

    def alike(per_video: int) -> list[str]:
        return ["[video 1]", *FRAMES * per_video, "[picture 2]", "picture", "[video 3]", *FRAMES * per_video]

    listed = (
        "Shown are, in this order: video 1 of 2.0 s, picture 2, video 3 of 4.0 s. What follows the name of a video is"
    )
    assert shown_to(server) == sorted(
        [
            ("This question is about 2 videos and a picture that you can't see.", []),
            (f"{listed} the frame in its middle.", alike(1)),
            (f"{listed} frames of it, each at its time.", alike(2)),
            (f"{listed} frames of it, each at its time.", alike(4)),
            (f"{listed} frames of parts of it, each at its time.", alike(3)),
            ("These pictures are from parts of 2 videos and a picture, in no particular order.", ["picture"] * 7),
        ]
    )


def test_captions_stand_in_only_where_all_media_have_them(album: Album, folder: Path, server: Any) -> None:
    record = album["two videos"]
    server.reply = right_answer(record)
    run(folder, server.base_url, record, captions={record.digests[0]: ["One."], record.digests[1]: ["Two."]})
    said = next(text for text, _ in shown_to(server) if text.startswith("This is what"))
    assert said == "This is what 2 videos show, part by part.\nVideo 1:\nOne.\nVideo 2:\nTwo."
    server.bodies.clear()
    other = album["the same video twice"]
    run(folder, server.base_url, other, captions={record.digests[0]: ["One."]})
    assert not any(text.startswith("This is what") for text, _ in shown_to(server))


def test_pictures_alone_are_shown_as_they_are(album: Album, folder: Path, server: Any) -> None:
    record = album["three pictures"]
    server.reply = right_answer(record)
    (kept,) = run(folder, server.base_url, record, captions={}).kept
    assert {rate.condition for rate in kept.pass_rates} == {Condition.BLIND, Condition.FULL}
    assert shown_to(server) == [
        (
            "Shown are, in this order: picture 1, picture 2, picture 3.",
            [part for number in (1, 2, 3) for part in (f"[picture {number}]", "picture")],
        ),
        ("This question is about 3 pictures that you can't see.", []),
    ]


def test_a_question_with_one_unreadable_medium_is_dropped_and_the_file_named(
    album: Album, folder: Path, server: Any
) -> None:
    (folder / "images" / "blue.jpg").write_bytes(b"no picture")
    server.reply = lambda body: "<answer>A</answer>"
    filtered = run(folder, server.base_url, *album.values(), captions={})
    lost = {
        item.record.question_id: item.verdict for item in filtered.dropped if item.verdict.reason == "video_unreadable"
    }
    assert set(lost) == {title for title, names in SHOWN.items() if "blue.jpg" in names}
    assert all(verdict.reason is Reason.VIDEO_UNREADABLE and "blue.jpg" in verdict.detail for verdict in lost.values())
    assert len(filtered.kept) + len(filtered.dropped) == len(SHOWN)


def test_the_same_words_about_other_media_are_another_question(album: Album) -> None:
    first = album["two videos"]
    evidence = (first.evidence[0],)

    def again(**changes: Any) -> bool:
        other = first.model_copy(update={"question_id": "zz", "evidence": evidence} | changes)
        return "zz" in find_repeated_questions([first.model_copy(update={"evidence": evidence}), other], {})

    assert again()
    assert not again(media=first.media[:1])
    assert not again(media=first.media[::-1])
    assert not again(evidence=(Interval(start_seconds=0.4, end_seconds=1.4, medium=1),))


def test_check_passes_a_sound_album_and_finds_what_is_wrong_with_each_medium(
    album: Album, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_dataset(folder) == []
    described = describe_dataset(folder)
    assert (described["videos"], described["images"], described["hours"]) == (2, 3, 0.002)
    assert main(["stats", str(folder)]) == 0
    leaked = album["a picture"].model_copy(update={"split": Split.HELD_OUT})
    write_records(folder / "records.parquet", [*list(album.values())[:5], leaked])
    assert any("image" in problem and "in several splits" in problem for problem in check_dataset(folder))
    write_records(folder / "records.parquet", album.values())
    draw_picture(folder / "images" / "red.png", "above", "red")
    (folder / "images" / "blue.jpg").unlink()
    problems = check_dataset(folder)
    for title, names in SHOWN.items():
        found = f"{title}: images/red.png is another file than the one asked about"
        assert (found in problems) == ("red.png" in names)
    assert any("image 'images/blue.jpg' is missing" in problem and "(2 questions)" in problem for problem in problems)


def test_any_medium_betrays_a_benchmark(album: Album, folder: Path, tmp_path: Path) -> None:
    fingerprints = fingerprint_records(folder, album.values(), decoder="pyav")
    assert find_same_footage(fingerprints) == {}
    (tmp_path / "exam").mkdir()
    draw_picture(tmp_path / "exam" / "unknown.png", "right", "blue")
    rows: list[tuple[Net, dict[str, Any], str]] = [
        (Net.FOOTAGE, {"question": "Who?", "images": ["exam/unknown.png"]}, "blue.jpg"),
        (Net.SOURCE_ID, {"question": "Who?", "media": [{"path": "a/secret_film.png", "digest": "0"}]}, "red.png"),
        (Net.SOURCE_ID, {"question": "Who?", "videos": ["b/secret_film.mp4", "x.mp4"]}, "red.png"),
    ]
    renamed = [
        record.model_copy(
            update={
                "media": tuple(
                    medium.model_copy(update={"path": medium.path.replace("red", "secret_film")})
                    for medium in record.media
                )
            }
        )
        for record in album.values()
    ]
    for net, row, name in rows:
        path = tmp_path / "exam.jsonl"
        path.write_text(json.dumps(row) + "\n")
        found = find_contamination(renamed, fingerprints, [read_evaluation_set(path)]).found
        assert {(item.question_id, item.net) for item in found} == {
            (title, net) for title, names in SHOWN.items() if name in names
        }


def test_records_of_this_package_are_a_benchmark_of_any_version(album: Album, folder: Path, tmp_path: Path) -> None:
    own = read_evaluation_set(folder / "records.parquet")
    assert [item.paths for item in own.items] == [tuple(m.path for m in record.media) for record in album.values()]
    assert [len(own.find_media(item)) for item in own.items] == [len(names) for names in SHOWN.values()]
