"""Each filter drops its bad questions and keeps the good ones, on rendered worlds and a viewer that knows them.

The models are simulated: `Viewer` answers over real HTTP from the ground truth, but only from what the images of the
request really show. It reads the number of the world from the blocks under each image and finds the actors by their
colours. It guesses what isn't visible, and is sometimes wrong.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from longvideo_reason_data.cli import main
from longvideo_reason_data.filtering.decontamination import SAME_WORDING
from longvideo_reason_data.filtering.near_duplicates import likeness, shingle
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.folder import hash_records
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.notes import FILTERS_NAME
from longvideo_reason_data.records.pass_rates import Condition
from longvideo_reason_data.records.record import Interval, QuestionRecord, Skill, Split, read_records, write_records
from longvideo_reason_data.timeline.questions import create_questions, deal_letters
from longvideo_reason_data.timeline.rendering import PALETTE, draw_frame
from longvideo_reason_data.timeline.world import PLACES, Scene, World, WorldSettings, create_world

SETTINGS = WorldSettings(seconds=30.0, num_scenes=5, frames_per_second=2, size_pixels=64, num_characters=6)
MIDDLE_SECONDS = 15.0  # the third of five scenes is always on stage then
NUM_BITS, BLOCK = 6, 10
COMMON_SENSE = {
    "Where do ships come in?": "harbour",
    "Where is corn made into flour?": "mill",
    "Where do people sell their goods?": "market",
    "Where do flowers grow best?": "garden",
}
WHO_IS_SEEN = "Who takes part in what is shown?"


# The worlds, rendered with their number below the frame.


def write_world(world: World, number: int, path: Path, *, scale: int = 1, quality: int = 20, rate: int = 2) -> str:
    """Render a world with its number in blocks below it; returns the SHA-256 of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = SETTINGS.size_pixels
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": str(quality)})
        stream.width, stream.height, stream.pix_fmt = size * scale, (size + BLOCK + 6) * scale, "yuv420p"
        for index in range(int(SETTINGS.seconds * rate)):
            picture = np.full((size + BLOCK + 6, size, 3), 128, dtype=np.uint8)
            picture[:size] = draw_frame(world, index / rate)
            for bit in range(NUM_BITS):
                picture[size:, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
            picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return digest_file(path)


def needed(record: QuestionRecord, world: World) -> list[Scene]:
    """The scenes that prove the answer."""
    starts = {span.start_seconds for span in record.evidence}
    return [scene for scene in world.scenes if scene.start_seconds in starts]


def on_stage(world: World, time_seconds: float) -> set[tuple[str, str]]:
    return {
        (colour, scene.place)
        for scene in world.scenes
        if scene.start_seconds <= time_seconds < scene.end_seconds
        for colour in scene.people
    }


# The simulated model.


@dataclass(frozen=True)
class Sight:
    """What one image shows: the number of its world, and who stands where."""

    number: int
    figures: frozenset[tuple[str, str]]


class Viewer:
    """Answers from the truth about what the images of a request show, and guesses the rest."""

    def __init__(self, worlds: dict[int, World], records: Sequence[QuestionRecord], numbers: dict[str, int]) -> None:
        self.worlds = worlds
        self.truths: dict[tuple[int, str, frozenset[str]], tuple[QuestionRecord, tuple[str, ...]]] = {}
        for record in records:
            truth = (record.options[LETTERS.index(record.answer)],) if record.options else (record.answer,)
            self.learn(record, numbers[record.media[0].digest], truth)
        self._sights: dict[str, Sight] = {}
        self.num_pictures: Counter[int] = Counter()

    def learn(self, record: QuestionRecord, number: int, truth: tuple[str, ...]) -> None:
        self.truths[number, record.question, frozenset(record.options)] = (record, truth)

    def reply(self, body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        sights = [self.look(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
        self.num_pictures[len(sights)] += 1
        text = content[-1]["text"]
        options = re.findall(r"^[A-D]\. (.+)$", text, re.MULTILINE)
        question = re.search(r"(.+)\nA\. ", text)
        assert question is not None
        chance = int.from_bytes(hashlib.sha256(json.dumps(body).encode()).digest()[:8])
        known = self.known(question.group(1), frozenset(options), sights)
        if known and chance % 100 >= 3:
            chosen = options.index(known[chance % len(known)])
        else:
            chosen = chance // 100 % len(options)
        return f"<think>There are {len(sights)} pictures.</think><answer>{LETTERS[chosen]}</answer>"

    def known(self, question: str, options: frozenset[str], sights: Sequence[Sight]) -> tuple[str, ...]:
        """What can be known: by common sense, or if all of the evidence is visible in the right order."""
        if question in COMMON_SENSE:
            return (COMMON_SENSE[question],)
        found = self.truths.get((sights[0].number, question, options)) if sights else None
        if found is None:
            return ()
        record, truth = found
        place = 0
        for scene in needed(record, self.worlds[sights[0].number]):
            figures = {(colour, scene.place) for colour in scene.people}
            while place < len(sights) and not figures <= sights[place].figures:
                place += 1
            if place == len(sights):
                return ()
        return truth

    def look(self, url: str) -> Sight:
        if url not in self._sights:
            data = base64.b64decode(url.partition(",")[2])
            picture = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
            size = SETTINGS.size_pixels
            blocks = picture[size + 4 : size + 8, BLOCK // 2 : NUM_BITS * BLOCK : BLOCK].mean(axis=(0, 2)) > 128
            number = sum(1 << bit for bit, is_on in enumerate(blocks) if is_on)
            figures: set[tuple[str, str]] = set()
            for name, corner in zip(PLACES, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
                half = size // 2
                part = picture[corner[0] * half :, corner[1] * half :][:half, :half]
                for colour, shade in PALETTE.items():
                    if (np.abs(part - shade).sum(axis=2) < 70).sum() >= 8:
                        figures.add((colour, name))
            self._sights[url] = Sight(number, frozenset(figures))
        return self._sights[url]


# The questions.


@dataclass
class Stock:
    """A dataset with planted questions, the kind of each, and a viewer that knows the truth."""

    folder: Path
    kinds: dict[str, list[QuestionRecord]]
    viewer: Viewer
    benchmark: Path


def make_stock(folder: Path, *, num_worlds: int, num_planted: int) -> Stock:
    worlds = {number: create_world(f"filters/{number}", SETTINGS) for number in range(num_worlds)}
    letters = deal_letters("filters")
    numbers: dict[str, int] = {}
    natural: dict[int, list[QuestionRecord]] = {}
    for number, world in worlds.items():
        name = f"videos/street_camera_{number:04d}.mp4"
        digest = write_world(world, number, folder / name)
        numbers[digest] = number
        natural[number] = [
            QuestionRecord(
                question_id=f"{number:03d}-{place}",
                media=(RecordMedium(path=name, digest=digest, duration_seconds=SETTINGS.seconds),),
                split=Split.TRAIN_RL,
                skill=question.skill,
                question=question.question,
                options=question.options,
                answer=question.answer,
                evidence=question.evidence,
                reasoning=question.reasoning,
                source="timeline world",
                license="CC0-1.0",
            )
            for place, question in enumerate(create_questions(world, letters, 8))
        ]
    viewer = Viewer(worlds, [record for group in natural.values() for record in group], numbers)
    kinds: dict[str, list[QuestionRecord]] = {"good": [], "single frame": []}
    for number, group in natural.items():
        seen = on_stage(worlds[number], MIDDLE_SECONDS)
        for record in group:
            figures = {(colour, s.place) for s in needed(record, worlds[number]) for colour in s.people}
            kinds["single frame" if figures <= seen else "good"].append(record)
    return _plant(Stock(folder, kinds, viewer, folder / "exam.jsonl"), worlds, natural, num_planted)


def _plant(stock: Stock, worlds: dict[int, World], natural: dict[int, list[QuestionRecord]], count: int) -> Stock:
    kinds, folder = stock.kinds, stock.folder
    rows: list[dict[str, Any]] = []
    # The last two worlds are in an evaluation set: one under its own name, one as another file of the same footage.
    last, before = max(worlds), max(worlds) - 1
    rows.append({"video_id": f"street_camera_{last:04d}", "question": "Which season is it?"})
    write_world(worlds[before], before, folder / "exam" / "unknown.mp4", scale=2, quality=32, rate=4)
    rows.append({"video_path": "exam/unknown.mp4", "question": "Which season is it?"})
    kinds["benchmark"] = [*natural[last], *natural[before]]
    theirs = {record.question_id for record in kinds["benchmark"]}
    for kind in ("good", "single frame"):
        kinds[kind] = [record for record in kinds[kind] if record.question_id not in theirs]
    # More by their wording, among those with a unique wording.
    words = {r.question_id: shingle(r.question, r.options) for group in natural.values() for r in group}
    alone = [
        record
        for record in kinds["good"]
        if sum(likeness(words[record.question_id], other) >= SAME_WORDING for other in words.values()) == 1
    ]
    for record in alone[: count // 2]:
        kinds["good"].remove(record)
        kinds["benchmark"].append(record)
        rows.append({"question": record.question.upper(), "options": [f"A. {text}" for text in record.options[::-1]]})
    stock.benchmark.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    # Wrong labels.
    kinds["mislabelled"] = [
        record.model_copy(update={"answer": LETTERS[(LETTERS.index(record.answer) + 1) % 4]})
        for record in kinds["good"][:count]
    ]
    del kinds["good"][:count]
    # The same again, in other words and with other options first; every other one about a copy of the video.
    kinds["duplicate"] = []
    for record in kinds["good"][:count]:
        number = int(record.question_id[:3])
        changes: dict[str, Any] = {
            "question_id": f"{record.question_id}-again",
            "question": f"In this film: {record.question}",
            "options": record.options[::-1],
            "answer": LETTERS[3 - LETTERS.index(record.answer)],
        }
        if len(kinds["duplicate"]) % 2:
            path = f"videos/copy_{number:04d}.mp4"
            if not (folder / path).exists():
                write_world(worlds[number], number, folder / path, quality=30)
            copied = {"path": path, "digest": digest_file(folder / path)}
            changes["media"] = (record.media[0].model_copy(update=copied),)
        kinds["duplicate"].append(record.model_copy(update=changes))
    # Questions that everybody can answer, and questions with two right answers.
    kinds["blind"], kinds["ambiguous"] = [], []
    for number in range(count):
        pattern = natural[number][0]
        question, right = list(COMMON_SENSE.items())[number % 4]
        kinds["blind"].append(
            pattern.model_copy(
                update={
                    "question_id": f"{number:03d}-blind",
                    "question": question,
                    "options": PLACES,
                    "answer": LETTERS[PLACES.index(right)],
                }
            )
        )
        scenes = [scene for place, scene in enumerate(worlds[number].scenes) if place != 2]
        first, second = list(dict.fromkeys(person for scene in scenes for person in scene.people))[:2]
        record = pattern.model_copy(
            update={
                "question_id": f"{number:03d}-ambiguous",
                "skill": Skill.PLOT,
                "question": WHO_IS_SEEN,
                "options": (first, "pink", second, "brown"),
                "answer": "A",
                "evidence": tuple(Interval(start_seconds=s.start_seconds, end_seconds=s.end_seconds) for s in scenes),
            }
        )
        stock.viewer.learn(record, number, (first, second))
        kinds["ambiguous"].append(record)
    write_records(folder / "records.parquet", [record for group in kinds.values() for record in group])
    return stock


EXPECTED = {
    "single frame": {"answered_from_one_frame"},
    "benchmark": {"in_benchmark"},
    "mislabelled": {"answered_otherwise"},
    "duplicate": {"near_duplicate"},
    "blind": {"answered_blind"},
    "ambiguous": {"ambiguous", "not_answerable"},
}
BRIEF = ["--num-full-frames", "20", "--num-evidence-frames", "6", "--num-few-frames", "3"]


def run_filter(stock: Stock, base_url: str, *more: str) -> dict[str, Any]:
    assert main(["filter", str(stock.folder), "--base-url", base_url, "--model", "model", *BRIEF, *more]) == 0
    return json.loads((stock.folder / FILTERS_NAME).read_text())


@pytest.mark.long
def test_each_filter_drops_its_own_and_keeps_the_good(tmp_path: Path, server: Any) -> None:
    stock = make_stock(tmp_path, num_worlds=23, num_planted=10)
    server.reply = stock.viewer.reply
    deciding = ["--conditions", "blind", "single_frame", "full", "evidence"]
    report = run_filter(stock, server.base_url, "--benchmarks", str(stock.benchmark), *deciding)
    reasons = {item["question_id"]: item["reason"] for item in report["items"]}
    kept = {record.question_id: record for record in read_records(tmp_path / "records.parquet")}
    for kind, expected in EXPECTED.items():
        assert len(stock.kinds[kind]) >= 10
        found = Counter(reasons.get(record.question_id, "kept") for record in stock.kinds[kind])
        assert set(found) <= expected, (kind, found)
    good = stock.kinds["good"]
    lost = Counter(reasons[record.question_id] for record in good if record.question_id not in kept)
    assert len(good) >= 100
    assert lost.total() <= 0.05 * len(good), (lost, len(good))
    # Kept plus dropped are all, rates are stored with the item, and kept questions can't be answered blind.
    assert len(kept) + len(reasons) == report["input"] == sum(len(group) for group in stock.kinds.values())
    assert all({rate.condition for rate in r.pass_rates} >= {Condition.BLIND, Condition.FULL} for r in kept.values())
    assert report["pass_rates"]["blind"]["right_rate"] < 0.35
    assert report["pass_rates"]["evidence"]["right_rate"] > 0.9
    # Filtering again sends no request and changes nothing.
    num_asked = len(server.bodies)
    assert run_filter(stock, server.base_url, "--benchmarks", str(stock.benchmark), *deciding) == report
    assert len(server.bodies) == num_asked
    assert hash_records(read_records(tmp_path / "records.parquet")) == hash_records(list(kept.values()))
