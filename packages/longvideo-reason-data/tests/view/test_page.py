"""The dataset browser: complete, closed to what a dataset says, and usable in a real browser with thousands."""

import base64
import io
import json
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from one_video import make_record
from PIL import Image
from several_media import write_album

from longvideo_reason_data.cli import main
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.record import Interval, QuestionRecord, Skill, Split, write_records
from longvideo_reason_data.view import page as written_page
from longvideo_reason_data.view.contents import difficulty_of
from longvideo_reason_data.view.page import render_page, write_page
from longvideo_reason_data.view.thumbnails import SIDE_PIXELS, make_thumbnails

MakeVideo = Callable[..., Path]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "window-size=1300,900"),
    "virtual-time-budget=20000",  # until parts are there
)
ATTACK = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"><!--"
NUM_VIDEOS, NUM_QUESTIONS = 30, 3000
SKILLS, SPLITS = list(Skill), list(Split)


def make_question(number: int, **changes: Any) -> QuestionRecord:
    video = number % NUM_VIDEOS
    fields: dict[str, Any] = {
        "question_id": f"question-{number:05d}",
        "video_path": f"videos/film-{video:02d}.mp4",
        "video_digest": f"{video:064x}",
        "video_duration_seconds": 100.0,
        "split": SPLITS[video % 3],
        "skill": SKILLS[number % 4],
        "question": f"Who opens door {number}?",
        "options": ("the cook", "the driver", "the neighbour", "nobody"),
        "answer": "ABCD"[number % 4],
        "evidence": (Interval(start_seconds=20.0, end_seconds=30.0),),
        "reasoning": "From 20.0 to 30.0 seconds the cook walks in, at 1:05 he leaves.",
        "source": "somewhere",
        "license": "CC0-1.0",
    }
    return make_record(fields | changes)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    records = [make_question(number) for number in range(NUM_QUESTIONS - 1)]
    records.append(make_question(NUM_QUESTIONS - 1, question=ATTACK, reasoning=ATTACK))
    write_records(folder / "records.parquet", records)
    segments = [
        {
            "video_path": f"videos/film-{video:02d}.mp4",
            "video_digest": f"{video:064x}",
            "number": number,
            "start_seconds": 10.0 * number,
            "end_seconds": 10.0 * number + 10,
            "caption": f"A lighthouse, part {number}" if video == 7 else f"A kitchen {ATTACK}",
            "speech": "Come in." if number == 2 else "",
        }
        for video in range(NUM_VIDEOS)
        for number in range(10)
    ]
    write_lines(folder / "segments.jsonl", segments)
    reasons = ("video_unreadable", "letters_unclear", ATTACK)
    write_lines(
        folder / "dropped.jsonl",
        [
            {"stage": "questions", "item": f"lost-{number}", "reason": reasons[number % 3], "detail": f"why {number}"}
            for number in range(300)
        ],
    )
    filtered = [
        {"question_id": "question-x", "reason": "blind_passed", "detail": "right in 8 of 8 answers"},
        {"question_id": "question-y", "reason": "too_easy", "detail": "right in 8 of 8 rollouts"},
    ]
    all_lost = {"video_path": "videos/film-lost.mp4", "video_digest": "f" * 64}
    write_records(
        folder / "unfiltered.parquet",
        [
            *records,
            make_question(7, question_id="question-x", question="Why?"),
            make_question(8, question_id="question-y", question="How?", **all_lost),
        ],
    )
    (folder / "filters.json").write_text(json.dumps({"items": filtered}))
    (folder / "manifest.json").write_text(json.dumps({"stages": {"videos": {"input": 31, "kept": 30, "dropped": {}}}}))
    return folder


@pytest.fixture(scope="module")
def page(dataset: Path) -> Path:
    path = dataset / "view.html"
    assert main(["view", str(dataset)]) == 0
    return path


class Elements(HTMLParser):
    """Collects elements with their attributes, and what stands in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


def test_the_page_holds_every_item_and_nothing_gets_out_of_the_data(page, dataset):
    elements = Elements(page.read_text(encoding="utf-8"))
    assert len(elements.scripts) == 2
    data = json.loads(elements.scripts[0])
    assert [item["id"] for item in data["questions"]] == [f"question-{number:05d}" for number in range(NUM_QUESTIONS)]
    assert data["questions"][-1]["question"] == ATTACK
    assert len(data["media"]) == NUM_VIDEOS + 1
    assert data["counts"]["videos"] == NUM_VIDEOS
    assert [len(video["segments"]) for video in data["media"]] == [10] * NUM_VIDEOS + [0]
    assert len(data["dropped"]) == 302
    assert data["manifest"]["stages"]["videos"]["kept"] == 30


def test_the_page_asks_for_nothing_and_allows_only_its_own_script(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    assert not [attributes for _, attributes in elements.found if "src" in attributes or "onclick" in attributes]
    assert [attributes["href"] for _, attributes in elements.found if "href" in attributes] == ["#detail"]
    policy = next(attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_text_that_looks_like_a_place_of_the_page_stays_text():
    contents = {"name": "{{SCRIPT}} {{POLICY}} {{", "lone": "\ud800"}
    data = Elements(render_page(contents)).scripts[0]
    assert json.loads(data)["name"] == contents["name"]


def test_difficulty_is_that_of_the_policy_if_it_was_asked():
    def rate(condition: str, num_right: int) -> dict[str, Any]:
        return {"condition": condition, "num_right": num_right, "num_asked": 8}

    assert difficulty_of([]) == "unmeasured"
    assert difficulty_of([rate("blind", 8)]) == "unmeasured"
    assert difficulty_of([rate("full", 6)]) == "easy"
    assert difficulty_of([rate("full", 5)]) == "medium"
    assert difficulty_of([rate("full", 8), rate("rollouts", 2)]) == "hard"


def test_pictures_are_few_small_and_from_their_time(tmp_path, make_video):
    records = [
        make_question(number, video_path=make_video(f"{number}.mp4", first_number=number).name) for number in range(3)
    ]
    missing = make_question(3, video_path="gone.mp4")
    media = [record.media[0] for record in records]
    pictures = make_thumbnails(tmp_path, [*media, *missing.media], most=16)
    assert [len(found) for found in pictures] == [4, 4, 4, 0]
    for found in pictures[:3]:
        assert [seconds for seconds, _ in found] == pytest.approx([0.28, 0.88, 1.48, 2.08])
        for _, uri in found:
            image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
            assert image.format == "JPEG"
            assert max(image.size) <= SIDE_PIXELS
    assert [len(found) for found in make_thumbnails(tmp_path, media, most=2)] == [1, 1, 0]
    assert make_thumbnails(tmp_path, media, most=0) == [[], [], []]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("segments.jsonl", "{}\n", "line 1: video_digest: Field required"),
        ("dropped.jsonl", "{nonsense\n", "line 1 isn't JSON"),
        ("manifest.json", "[]", "expected a JSON object"),
        ("filters.json", '{"items": [3]}', "items: 0: expected an object"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path, capsys, name, text, words):
    write_records(tmp_path / "records.parquet", [make_question(0)])
    (tmp_path / name).write_text(text)
    assert main(["view", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "view.html").exists()


def test_a_folder_without_a_dataset_is_a_wrong_request(tmp_path, capsys):
    assert main(["view", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err


Browse = Callable[..., str]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Give a function that opens a page in a browser, and returns what became of it."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    profile = tmp_path_factory.mktemp("profile")

    def open_page(page: Path, address: str = "") -> str:
        finished = subprocess.run(
            [
                str(BROWSER),
                *(f"--{switch}" for switch in SWITCHES),
                f"--user-data-dir={profile}",
                "--dump-dom",
                f"{page.as_uri()}#{address}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return re.sub(r'<script type="application/json".*?</script>', "", finished.stdout, flags=re.DOTALL)

    return open_page


def num_found(dom: str) -> int:
    found = re.search(r'data-found="(\d+)"', dom)
    assert found, dom[:500]
    return int(found[1])


@pytest.mark.slow
def test_a_browser_finds_and_filters(browse, page):
    everything = browse(page)
    assert num_found(everything) == NUM_QUESTIONS
    assert 5 < everything.count('role="option"') < 50  # of three thousand
    both = browse(page, "search=door+lighthouse&skill=goal&split=train_rl")
    expected = [
        number for number in range(NUM_QUESTIONS) if number % NUM_VIDEOS == 7 and number % 4 == SKILLS.index(Skill.GOAL)
    ]
    assert SPLITS[7 % 3] is Split.TRAIN_RL
    assert num_found(both) == len(expected) == 50
    assert num_found(browse(page, "view=dropped&reason=letters_unclear")) == 100
    assert "Nothing matches" in browse(page, "search=unicorn")


@pytest.mark.slow
def test_a_browser_shows_what_a_filter_took_out(browse, page):
    dom = browse(page, "view=dropped&reason=blind_passed")
    assert num_found(dom) == 1
    assert "<h2>Why?</h2>" in dom
    assert "right in 8 of 8 answers" in dom
    assert "videos/film-07.mp4" in dom
    dom = browse(page, "view=dropped&reason=too_easy")  # of a video about which no question was kept
    assert num_found(dom) == 1
    assert "<h2>How?</h2>" in dom
    assert "videos/film-lost.mp4" in dom
    assert 'class="timeline"' in dom


def test_a_browser_sums_up_how_models_answered(browse, tmp_path):
    def rate(condition: Condition, num_right: int, num_unanswered: int) -> PassRate:
        counts = {"num_asked": 8, "num_right": num_right, "num_unanswered": num_unanswered}
        return PassRate(condition=condition, model="seer", **counts)

    rates = (rate(Condition.BLIND, 2, 0), rate(Condition.FULL, 7, 1))
    write_records(tmp_path / "records.parquet", [make_question(number, pass_rates=rates) for number in range(4)])
    write_page(tmp_path, tmp_path / "page.html")
    dom = browse(tmp_path / "page.html", "view=about")
    assert "25 % of 32 right</td>" in dom
    assert "88 % of 32 right, 13 % without a choice</td>" in dom
    assert "[object" not in dom


def test_a_browser_shows_how_models_answered(browse, tmp_path):
    write_records(tmp_path / "records.parquet", [make_question(number) for number in range(40)])
    contents = write_page(tmp_path, tmp_path / "page.html")
    for number, question in enumerate(contents["questions"]):
        counts = {
            "num_asked": 8,
            "num_right": number % 8,
            "num_unanswered": 1,
            "num_chosen": [number % 8, 7 - number % 8, 0, 0],
        }
        question["rates"] = [
            {"condition": "single_frame", "model": "seer", **counts},
            {"condition": "full", "model": "seer", **counts},
        ]
        question["difficulty"] = difficulty_of(question["rates"])
    (tmp_path / "page.html").write_text(render_page(contents), encoding="utf-8")
    dom = browse(tmp_path / "page.html", "difficulty=hard&item=question-00002")
    assert num_found(dom) == sum(number % 8 <= 2 for number in range(40))
    assert "<td>single frame</td><td>seer</td><td>2 of 8</td>" in dom
    assert "A 2 · B 5 · C 0 · D 0 · none 1" in dom


def test_a_browser_shows_an_item_and_runs_nothing_of_it(browse, page):
    dom = browse(page, f"item=question-{NUM_QUESTIONS - 1:05d}&show=20-30")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title
    assert title[1].endswith("dataset browser")
    assert "<h2>&lt;/script&gt;&lt;script&gt;" in dom
    assert "<img" not in dom
    marker = re.search(r'class="marker"[^>]*left: 20%; width: 10%', dom)
    assert marker
    assert "Come in." in dom  # what is said in the segment at 20 s


def test_a_browser_is_driven_by_keys_and_clicks(browse, page, tmp_path):
    script = """<script>
    const list = document.getElementById("list");
    const press = (key) => list.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    press("ArrowDown"); press("j"); press("ArrowDown"); press("ArrowUp");
    const times = [...document.querySelectorAll(".reasoning .time")];
    document.body.dataset.times = times.map((time) => time.textContent).join("|");
    times[1].click();
    document.getElementById("theme").click();
    document.body.dataset.address = location.hash;
    </script></body>"""
    driven = tmp_path / "driven.html"
    text = re.sub(r"<meta http-equiv.*?>\n", "", page.read_text(encoding="utf-8"), count=1)
    driven.write_text(text.replace("</body>", script), encoding="utf-8")
    dom = browse(driven)
    assert 'data-times="20.0 to 30.0 seconds|1:05"' in dom
    assert 'data-address="#item=question-00002&amp;show=65-65&amp;theme=dark"' in dom
    assert re.search(r'id="row-2" aria-selected="true"', dom)
    assert 'data-theme="dark"' in dom


def test_a_browser_plays_the_video_at_the_evidence_and_loads_nothing_before(browse, tmp_path, make_video):
    """The page's own policy holds, but for a script that clicks."""
    name = "videos/a film #1.webm"
    make_video(f"data/{name}", codec="libvpx", num_frames=75)
    evidence = (Interval(start_seconds=1.5, end_seconds=2.0),)
    record = make_question(0, video_path=name, video_duration_seconds=3.0, evidence=evidence)
    write_records(tmp_path / "data" / "records.parquet", [record])
    write_page(tmp_path / "data", tmp_path / "view.html")
    script = """<script>
    document.body.dataset.before = document.querySelectorAll("video").length;
    document.querySelector(".play").click();
    document.querySelector("video").addEventListener("seeked", (event) => {
      document.body.dataset.seconds = event.target.duration.toFixed(1);
      document.body.dataset.at = event.target.currentTime.toFixed(1);
    });
    </script></body>"""
    text = (tmp_path / "view.html").read_text(encoding="utf-8")
    driven = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text, count=1)
    (tmp_path / "driven.html").write_text(driven.replace("</body>", script), encoding="utf-8")
    dom = browse(tmp_path / "driven.html")
    assert 'data-before="0"' in dom
    assert "Play 0:01.5–0:02" in dom
    assert 'data-seconds="3.0"' in dom
    assert re.search(r'data-at="1\.[5-9]"', dom)


def test_a_browser_says_where_the_questions_of_an_empty_dataset_are(browse, tmp_path):
    write_records(tmp_path / "records.parquet", [])
    write_lines(tmp_path / "dropped.jsonl", [{"stage": "questions", "item": "a", "reason": "b", "detail": "c"}])
    write_page(tmp_path, tmp_path / "view.html")
    assert "No question was kept. 1 dropped item with the reasons: under Dropped" in browse(tmp_path / "view.html")


def test_a_page_without_pictures_and_descriptions_is_made_too(tmp_path):
    write_records(tmp_path / "records.parquet", [make_question(0, options=(), answer="the cook", evidence=())])
    contents = write_page(tmp_path, tmp_path / "page.html")
    assert contents["media"][0]["thumbnails"] == []
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_the_page_holds_all_media_of_a_question(tmp_path, make_video):
    records = write_album(tmp_path / "dataset", make_video)
    contents = write_page(tmp_path / "dataset", tmp_path / "view.html")
    paths = [medium["path"] for medium in contents["media"]]
    assert len(paths) == len(set(paths)) == 5
    for question in contents["questions"]:
        record = records[question["id"]]
        assert [paths[number] for number in question["media"]] == [medium.path for medium in record.media]
        assert question["evidence"] == [[0.4, 1.4, span.medium] for span in record.evidence]
    for medium in contents["media"]:
        assert len(medium["thumbnails"]) == (1 if medium["kind"] == "image" else 12)


def test_a_browser_shows_all_media_of_a_question(browse, tmp_path, make_video):
    write_album(tmp_path / "dataset", make_video)
    write_page(tmp_path / "dataset", tmp_path / "view.html")
    dom = browse(tmp_path / "view.html", "item=a picture between videos")
    places = [dom.index(words) for words in ("1. videos/two.mp4", "2. images/blue.jpg", "3. videos/one.mp4")]
    assert places == sorted(places)
    assert 'aria-label="Picture images/blue.jpg"' in dom
    assert dom.count('aria-label="Timeline of') == 2
    assert "1. 0:00.4–0:01.4" in dom
    assert "3. 0:00.4–0:01.4" in dom


# Datasets of many questions.


@pytest.fixture(scope="module")
def large(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset as it is shown when there is more in it than one file should hold."""
    path = tmp_path_factory.mktemp("large") / "view.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written_page, "MOST_QUESTIONS_INSIDE", NUM_QUESTIONS - 1)
        write_page(dataset, path)
    return path


def read_parts(page: Path, kind: str) -> list[dict[str, Any]]:
    """Read the items of a page out of its parts, as a browser would."""
    folder = page.parent / json.loads(Elements(page.read_text(encoding="utf-8")).scripts[0])["parts"]["folder"]
    items: list[dict[str, Any]] = []
    for number in range(len(list(folder.glob(f"{kind}-*.js")))):
        script = (folder / f"{kind}-{number}.js").read_text(encoding="utf-8")
        call = re.fullmatch(rf'takePart\("{kind}-{number}", (".*")\);\n', script)
        assert call, script[:100]
        assert "<" not in script
        items += json.loads(json.loads(call[1]))
    return items


def test_parts_hold_what_one_file_would(page, large):
    whole = json.loads(Elements(page.read_text(encoding="utf-8")).scripts[0])
    text = large.read_text(encoding="utf-8")
    listed = json.loads(Elements(text).scripts[0])
    for kind in ("questions", "dropped", "media"):
        assert read_parts(large, kind) == whole[kind]
    for kind, names in (("questions", ("skill", "split", "difficulty")), ("dropped", ("reason", "stage", "skill"))):
        assert listed[kind]["id"] == [item.get("id") or item["item"] for item in whole[kind]]
        assert listed[kind]["media"] == [item.get("media", []) for item in whole[kind]]
        for name in names:
            column = listed[kind]["filters"][name]
            assert [column["values"][place] for place in column["numbers"]] == [item.get(name) for item in whole[kind]]
    assert {name: listed[name] for name in ("name", "counts", "manifest")} == {
        name: whole[name] for name in ("name", "counts", "manifest")
    }
    assert len(text) < len(page.read_text(encoding="utf-8")) / 3
    elements = Elements(text)
    assert not [attributes for _, attributes in elements.found if "src" in attributes]
    policy = next(attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes)
    assert policy
    assert re.search(r"script-src 'sha256-[^']+' 'strict-dynamic'$", policy)
    assert "unsafe" not in policy


def test_parts_of_an_earlier_page_go_when_the_new_one_is_there(dataset, tmp_path, monkeypatch):
    page, mine = tmp_path / "view.html", tmp_path / "view-parts-0123456789ab" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("kept")
    monkeypatch.setattr(written_page, "MOST_QUESTIONS_INSIDE", 10)
    folders: list[set[str]] = []
    for num_questions in (20, 30, 30, 5):
        write_records(tmp_path / "records.parquet", [make_question(number) for number in range(num_questions)])
        write_page(tmp_path, page)
        folders.append({path.name for path in tmp_path.iterdir() if path.is_dir()} - {mine.parent.name})
    assert [len(names) for names in folders] == [1, 1, 1, 0]
    assert folders[0] != folders[1] == folders[2]
    assert mine.read_text() == "kept"


def test_a_large_page_is_not_written_when_a_file_is_damaged(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(written_page, "MOST_QUESTIONS_INSIDE", 10)
    write_records(tmp_path / "records.parquet", [make_question(number) for number in range(20)])
    (tmp_path / "segments.jsonl").write_text("{}\n")
    assert main(["view", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"records.parquet", "segments.jsonl"}


@pytest.mark.slow
def test_a_page_of_many_questions_is_written_in_little_memory(tmp_path):
    write_records(
        tmp_path / "records.parquet", (make_question(number, reasoning="a " * 2000) for number in range(6000))
    )
    tracemalloc.start()
    try:
        contents = write_page(tmp_path, tmp_path / "view.html", most_thumbnails=0)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contents["counts"]["questions"] == 6000
    assert peak_bytes < 24e6  # a thousand reasonings, of six thousand


def test_a_browser_loads_the_part_of_what_it_shows(browse, large):
    dom = browse(large, f"item=question-{NUM_QUESTIONS - 1:05d}&show=20-30")
    assert num_found(dom) == NUM_QUESTIONS
    assert re.search(r"<title>[^<]*dataset browser</title>", dom)
    assert "<h2>&lt;/script&gt;&lt;script&gt;" in dom
    assert "<img" not in dom
    assert "Come in." in dom
    assert "<script src" not in dom  # a part's script goes when it has run
    dom = browse(large, "view=dropped&reason=blind_passed")
    assert num_found(dom) == 1
    assert "<h2>Why?</h2>" in dom
    assert "videos/film-07.mp4" in dom


def test_a_browser_searches_all_parts(browse, large):
    dom = browse(large, "search=door+lighthouse&skill=goal&split=train_rl")
    expected = [
        number for number in range(NUM_QUESTIONS) if number % NUM_VIDEOS == 7 and number % 4 == SKILLS.index(Skill.GOAL)
    ]
    assert num_found(dom) == len(expected)
    assert f"<h2>Who opens door {expected[0]}?</h2>" in dom
    assert "Nothing matches" in browse(large, "search=unicorn")


def test_a_browser_says_when_the_parts_are_gone(browse, large, tmp_path):
    alone = Path(shutil.copy(large, tmp_path))
    dom = browse(alone)
    assert "A part of this view is missing." in dom
    assert num_found(dom) == NUM_QUESTIONS
