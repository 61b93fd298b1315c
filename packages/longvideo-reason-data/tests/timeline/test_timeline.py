"""The timeline world: questions follow from events, and the file shows the events."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from pydantic import ValidationError

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.record import Demonstration, Skill, Split, read_records
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.questions import NUM_OPTIONS, create_questions, deal_letters
from longvideo_reason_data.timeline.rendering import PALETTE, draw_frame, write_video
from longvideo_reason_data.timeline.world import Action, WorldSettings, create_world

SETTINGS = WorldSettings()
LONG_WORLDS = [
    create_world(f"long/{seconds}", WorldSettings(seconds=seconds, num_scenes=int(seconds / 8), scene_seconds=2.0))
    for seconds in (100.0, 777.7, 7200.0)
]
WORLDS = [create_world(f"test/{number}", SETTINGS) for number in range(60)]


def shows(picture, colour):
    """Whether more than a few pixels of a frame have nearly this colour."""
    distance = np.abs(picture.astype(int) - np.array(PALETTE[colour])).max(axis=-1)
    return int((distance < 30).sum()) > 20


def test_a_name_gives_one_world_and_another_name_another():
    assert create_world("a", SETTINGS) == create_world("a", SETTINGS)
    assert create_world("a", SETTINGS).scenes != create_world("b", SETTINGS).scenes


@pytest.mark.parametrize("world", WORLDS[:20])
def test_scenes_are_in_order_apart_and_inside_the_video(world):
    edges = [0.0, *(edge for scene in world.scenes for edge in (scene.start_seconds, scene.end_seconds))]
    assert all(before < after for before, after in zip(edges, [*edges[1:], SETTINGS.seconds], strict=True))


@pytest.mark.parametrize("world", WORLDS)
def test_a_parcel_is_taken_before_the_same_one_brings_it(world):
    taken = [index for index, scene in enumerate(world.scenes) if scene.action is Action.TAKE]
    brought = [index for index, scene in enumerate(world.scenes) if scene.action is Action.BRING]
    assert len(taken) == len(brought) == 1
    assert taken[0] < brought[0]
    assert world.scenes[taken[0]].actor == world.scenes[brought[0]].actor


def test_the_picture_shows_who_takes_part_and_nobody_else():
    for world in WORLDS[:8]:
        for scene in world.scenes:
            picture = draw_frame(world, scene.middle_seconds)
            assert {colour for colour in world.characters if shows(picture, colour)} == set(scene.people)
        assert not any(shows(draw_frame(world, 0.0), colour) for colour in world.characters)


def test_the_file_shows_each_scene_at_its_time(tmp_path):
    world = WORLDS[0]
    write_video(world, tmp_path / "world.mp4")
    video = VideoFile.open(tmp_path / "world.mp4")
    assert video.frame_count == SETTINGS.seconds * SETTINGS.frames_per_second
    for scene in world.scenes:
        index = int(np.abs(video.timestamps - scene.middle_seconds).argmin())
        assert all(shows(video.read([index])[0], person) for person in scene.people)


def answers_from_scenes(world, question):
    """Compute the answer from the scenes again, in another way than for the questions."""
    scenes = world.scenes
    if between := re.match(r"Between (\S+)s and (\S+)s: ", question):
        start, end = map(float, between.groups())
        scenes = [scene for scene in scenes if start < scene.start_seconds and scene.end_seconds < end]
        question = question[between.end() :].capitalize()
    words = question.rstrip("?").split()

    def told(text):
        return next(index for index, scene in enumerate(scenes) if scene.sentence().startswith(text + " in the"))

    if question.startswith("Who is seen first"):
        return scenes[0].actor
    if question.startswith("Who is seen right after"):
        return scenes[told(question[len("Who is seen right after ") : -1]) + 1].actor
    if question.startswith("For what does"):
        wants = {"waits": "rest", "meets": "company", "takes": "collection", "brings": "delivery"}
        return next(wants[scene.sentence().split()[1]] for scene in scenes if scene.actor == words[3])
    if question.startswith("For whom does"):
        return next(scene.partner for scene in scenes if f"{words[3]} brings" in scene.sentence())
    if question.startswith("Where is it that"):
        return scenes[told(question[len("Where is it that ") : -1])].place
    bring = next(scene for scene in scenes if scene.action is Action.BRING)
    return bring.partner if "in the end" in question else bring.actor


@pytest.mark.parametrize("world", [*WORLDS, *LONG_WORLDS])
def test_every_answer_follows_from_the_scenes(world):
    questions = create_questions(world, deal_letters("test"), 12)
    assert len({question.question for question in questions}) == len(questions) >= 5
    for question in questions:
        right = question.options["ABCD".index(question.answer)]
        assert right == answers_from_scenes(world, question.question)
        assert len(set(question.options)) == NUM_OPTIONS
        starts = {interval.start_seconds for interval in question.evidence}
        told = [scene.sentence() for scene in world.scenes if scene.start_seconds in starts]
        assert len(told) == len(question.evidence) == question.reasoning.count("Around")
        assert all(sentence in question.reasoning for sentence in told)
        seen = {word for sentence in told for word in sentence.split()}
        assert right in seen or question.skill is Skill.GOAL


def test_all_four_skills_are_asked():
    skills = Counter(
        question.skill for world in WORLDS for question in create_questions(world, deal_letters("test"), 7)
    )
    assert set(skills) == set(Skill)
    assert min(skills.values()) > 0.15 * skills.total()


def test_letters_are_balanced_and_follow_no_skill():
    dealt = list(islice(deal_letters("x"), 4000))
    assert set(Counter(dealt).values()) == {1000}
    by_place = Counter((index % 4, letter) for index, letter in enumerate(dealt))
    assert min(by_place.values()) > 180  # 250 expected


@pytest.mark.parametrize("seconds", [8.0, 20.0, 7200.0])
def test_one_code_makes_seconds_and_hours(seconds):
    settings = WorldSettings(seconds=seconds, num_scenes=max(3, int(seconds / 8)), scene_seconds=1.5)
    world = create_world("long", settings)
    assert len(world.scenes) == settings.num_scenes
    assert world.scenes[-1].end_seconds < seconds


def test_impossible_settings_name_the_way_out():
    with pytest.raises(ValidationError, match=r"at most 6; set num_scenes, scene_seconds or seconds"):
        WorldSettings(seconds=32.0, num_scenes=9, scene_seconds=4.0)
    with pytest.raises(ValidationError, match="size_pixels must be a multiple of 16, got 113"):
        WorldSettings(size_pixels=113)


SMALL = WorldSettings(seconds=12.0, num_scenes=3, scene_seconds=2.0, frames_per_second=2, size_pixels=64)
VIDEOS = {Split.TRAIN_SFT: 4, Split.TRAIN_RL: 2, Split.HELD_OUT: 2}


def write_small(output, **changes):
    values = {"videos": VIDEOS, "questions_per_video": 6, "seed": 3} | changes
    return write_timeline_dataset(output, SMALL, **values)


@pytest.mark.slow
def test_a_dataset_shares_no_video_between_splits_and_reads_back(tmp_path):
    records = write_small(tmp_path)
    assert read_records(tmp_path / "records.parquet") == records
    videos = {split: {record.media[0].digest for record in records if record.split is split} for split in Split}
    assert [len(videos[split]) for split in VIDEOS] == [4, 2, 2]
    assert len(set.union(*videos.values())) == 8


@pytest.mark.slow
def test_an_interrupted_rendering_continues_with_what_is_there(tmp_path):
    first = write_small(tmp_path)
    kept, lost = sorted((tmp_path / "videos").glob("*.mp4"))[:2]
    inode = kept.stat().st_ino
    lost.unlink()
    assert write_small(tmp_path) == first
    assert kept.stat().st_ino == inode


@pytest.mark.slow
def test_only_demonstrations_for_sft_are_guesses_and_say_so(tmp_path):
    honest = {record.question_id: record for record in write_small(tmp_path)}
    mixed = write_small(tmp_path, hasty_fraction=0.5)
    hasty = [record for record in mixed if record.demonstration is Demonstration.GUESSED]
    assert 3 <= len(hasty) < sum(record.split is Split.TRAIN_SFT for record in mixed) - 2
    assert {record.split for record in hasty} == {Split.TRAIN_SFT}
    untouched = [record for record in mixed if record not in hasty]
    assert all(record == honest[record.question_id] for record in untouched)
    assert all("guess" in record.reasoning for record in hasty)


def test_no_video_asked_for_is_refused(tmp_path):
    with pytest.raises(UsageError, match="0 videos requested"):
        write_small(tmp_path, videos={Split.HELD_OUT: 0})


RENDER = """
import sys
from hashlib import sha256
from pathlib import Path
from longvideo_reason_data.timeline.rendering import write_video
from longvideo_reason_data.timeline.world import WorldSettings, create_world

settings = WorldSettings(seconds=16.0, num_scenes=4, scene_seconds=2.0, frames_per_second=2, size_pixels=112)
for name in "abcdefgh":
    path = Path(sys.argv[1], name + ".mp4")
    write_video(create_world(name, settings), path)
    print(sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_file_depends_on_nothing_that_lies_in_memory(tmp_path):
    said: set[str] = set()
    for fill in ("0", "85", "170", "255"):  # glibc fills fresh memory with this byte
        done = subprocess.run(
            [sys.executable, "-c", RENDER, tmp_path],
            env=os.environ | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1


@pytest.mark.slow
def test_killing_the_renderer_leaves_no_process_behind(tmp_path):
    line = "from longvideo_reason_data.cli import main; main()"
    arguments = ["timeline", "--output", tmp_path / "world", "--videos", "500", "--seconds", "60"]
    running = subprocess.Popen(
        [sys.executable, "-c", line, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not list(tmp_path.glob("world/videos/*.mp4")):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.communicate(timeout=60)  # the pipe is open as long as a worker lives
    assert 0 < len(list(tmp_path.glob("world/videos/*.mp4"))) < 500
