"""A pipeline as it is watched: its stages, its videos before anything is trained, and the run that is trained now."""

import json
import os
import shutil
import urllib.error
import urllib.request

import pytest
from chromium import Chromium
from watched_journals import add_steps, write_run

from longrl.errors import AppUsageError
from longrl.watch.watched_pipeline import WatchedPipeline, watch_folder
from longrl.watch.watched_run import WatchedRun
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings


def write_stage(folder, name, *, seconds=3.0, is_finished=True):
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    for ending in (".json", ".started.json"):
        (folder / "stages" / f"{name}{ending}").unlink(missing_ok=True)
    ending = ".json" if is_finished else ".started.json"
    (folder / "stages" / f"{name}{ending}").write_text(json.dumps({"seconds": seconds}))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    settings = WorldSettings(seconds=16.0, num_scenes=4, scene_seconds=2.0)
    write_timeline_dataset(folder, settings, videos={Split.TRAIN_SFT: 5}, questions_per_video=4, seed=0)
    return folder


@pytest.fixture
def pipeline(tmp_path, world):
    """One whose world is rendered, and whose model is being built."""
    folder = tmp_path / "quickstart"
    write_stage(folder, "world")
    write_stage(folder, "model", seconds=1.5, is_finished=False)
    (folder / "dataset").mkdir()
    for path in world.rglob("*"):
        if path.is_file():
            (folder / "dataset" / path.relative_to(world)).parent.mkdir(exist_ok=True)
            os.link(path, folder / "dataset" / path.relative_to(world))
    return folder


def test_a_folder_is_watched_as_what_it_is(pipeline):
    write_run(pipeline / "sft", num_steps=1)
    assert isinstance(watch_folder(pipeline), WatchedPipeline)
    assert isinstance(watch_folder(pipeline / "sft"), WatchedRun)
    with pytest.raises(AppUsageError, match="no run"):
        watch_folder(pipeline / "dataset")


def test_before_any_training_there_are_stages_and_frames(pipeline):
    watched = WatchedPipeline(pipeline)
    state = watched.state()
    assert (state["run"], state["runs"], state["steps"], state["has_report"]) == ("", [], [], False)
    shown = {stage["name"]: (stage["status"], stage["seconds"]) for stage in state["stages"]}
    assert shown["world"] == ("finished", 3.0)
    assert shown["model"] == ("begun", 1.5)
    assert shown["grpo"] == ("waiting", None)
    assert list(shown)[-1] == "report"
    found = watched.films()
    assert found["are_final"]
    films = found["films"]
    assert len({film["skill"] for film in films}) == len(films) >= 3
    assert len({film["frames"][0]["source"] for film in films}) == len(films)
    assert all(len(film["frames"]) == 8 for film in films)


def test_while_videos_are_rendered_the_first_ones_are_shown_without_questions(pipeline):
    (pipeline / "dataset" / "records.parquet").unlink()
    videos = sorted((pipeline / "dataset" / "videos").iterdir())
    for video in videos[2:]:
        video.rename(video.with_name(f".{video.name}.part"))
    found = WatchedPipeline(pipeline).films()
    assert [(film["question"], len(film["frames"])) for film in found["films"]] == [("", 8), ("", 8)]
    assert not found["are_final"]
    shutil.rmtree(pipeline / "dataset")
    assert WatchedPipeline(pipeline).films() == {"films": [], "are_final": False, "problem": ""}


def test_a_damaged_dataset_is_told_in_the_place_of_the_frames(pipeline):
    for name in ("videos/000-broken.mp4", "records.parquet"):
        records = pipeline / "dataset" / "records.parquet"
        records.unlink()
        (pipeline / "dataset" / name).write_text("nonsense")
        found = WatchedPipeline(pipeline).films()
        assert (found["films"], found["are_final"]) == ([], False)
        assert name.rpartition("/")[2] in found["problem"]
        records.touch()


def test_the_latest_run_is_shown_unless_one_is_chosen(pipeline):
    watched = WatchedPipeline(pipeline)
    write_run(pipeline / "sft", num_steps=3)
    first = watched.state()
    assert (first["run"], first["runs"], len(first["steps"])) == ("sft", ["sft"], 3)
    add_steps(pipeline / "sft", range(4, 5))
    new = watched.state(edition=first["edition"], num_steps=3, num_groups=6)
    assert [line["step"] for line in new["steps"]] == [4]
    write_run(pipeline / "grpo", num_steps=2)
    latest = watched.state(edition=first["edition"], num_steps=4, num_groups=8)
    assert (latest["run"], len(latest["steps"])) == ("grpo", 2)
    assert latest["edition"] != first["edition"]
    chosen = watched.state(run="sft", edition=first["edition"], num_steps=4, num_groups=8)
    assert (chosen["run"], chosen["steps"], chosen["edition"]) == ("sft", [], first["edition"])
    assert watched.group("4-1", "sft")["question"] == "What is in step 4, place 0?"
    assert watched.group("4-1", "grpo") is None
    assert watched.group("1-1", "../sft") is None
    assert watched.state(run="../sft")["run"] == "grpo"


def test_a_run_that_is_redone_is_read_anew_and_comes_first(pipeline):
    write_run(pipeline / "sft", num_steps=3)
    write_run(pipeline / "grpo", num_steps=1)
    watched = WatchedPipeline(pipeline)
    before = watched.state(run="sft")
    settings = json.loads((pipeline / "sft" / "settings.json").read_text())
    for path in (pipeline / "sft").iterdir():
        path.unlink()
    (pipeline / "sft").rmdir()
    write_run(pipeline / "sft", num_steps=1)
    settings["settings"]["seed"] = 7
    (pipeline / "sft" / "settings.json").write_text(json.dumps(settings))
    write_stage(pipeline, "sft", is_finished=False)
    after = watched.state(edition=before["edition"], num_steps=3, num_groups=6)
    assert (after["run"], after["settings"]["seed"], len(after["steps"])) == ("sft", 7, 1)


def test_stages_of_something_else_are_one_line(pipeline):
    (pipeline / "stages" / "world.json").write_text("[]")
    with pytest.raises(AppUsageError, match=r"world\.json: expected a JSON object"):
        WatchedPipeline(pipeline).state()
    (pipeline / "stages" / "world.json").write_text('{"seconds": "long"}')
    assert WatchedPipeline(pipeline).state()["stages"][0]["seconds"] is None


def test_a_link_in_a_pipeline_is_not_followed(pipeline, tmp_path):
    write_run(tmp_path / "private", num_steps=1)
    (pipeline / "sft").symlink_to(tmp_path / "private")
    with pytest.raises(AppUsageError, match="link"):
        WatchedPipeline(pipeline).state()


def test_the_server_gives_stages_films_and_groups_of_each_run(pipeline, serve):
    write_run(pipeline / "sft", num_steps=1)
    write_run(pipeline / "grpo", num_steps=2)
    server = serve(WatchedPipeline(pipeline))

    def ask(path):
        with urllib.request.urlopen(server.address + path) as answer:
            return json.loads(answer.read())

    assert ask("state")["run"] == "grpo"
    assert len(ask("state?run=sft")["steps"]) == 1
    assert len(ask("films")["films"]) >= 3
    assert ask("groups/2-1?run=grpo")["question"] == "What is in step 2, place 0?"
    for path in ("groups/2-1?run=sft", "groups/2-1"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(path)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{serve(WatchedRun(pipeline / 'sft')).address}films")


@pytest.mark.slow
def test_a_browser_shows_the_videos_then_each_run_as_it_begins(pipeline, serve, tmp_path):
    browser = Chromium(tmp_path / "profile")
    watched = WatchedPipeline(pipeline)
    server = serve(watched)
    early = browser.open(server.address)
    assert early.count("<img ") >= 24
    assert "no training has begun yet" in early
    assert "Render videos, write questions" in early
    write_run(pipeline / "sft", num_steps=3)
    look = watched.state

    def begin_grpo_after_a_look(**asked):
        state = look(**asked)
        if not (pipeline / "grpo").exists():
            write_run(pipeline / "grpo", num_steps=5)
        return state

    watched.state = begin_grpo_after_a_look
    followed = browser.open(server.address)
    assert "grpo, step 5, going on or stopped" in followed
    assert followed.count("<figure>") == 4
    assert '<button class="chosen">grpo</button>' in followed
    group = browser.open(f"{server.address}#group?id=5-1")
    assert group.count("<article>") == 2
    (pipeline / "report.html").write_text("")
    overview = browser.open(f"{server.address}#overview")
    assert "report.html" in overview
    assert overview.count("<img ") >= 24
