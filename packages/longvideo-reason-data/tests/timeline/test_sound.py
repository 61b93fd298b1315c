"""A world with sound: tones at the times of scenes, questions that need both senses, and nothing new without it."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from longvideo_reason_data.cli import main
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.question_types import Senses, Skill
from longvideo_reason_data.records.record import Split, read_records
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.questions import create_questions, deal_letters
from longvideo_reason_data.timeline.rendering import write_video
from longvideo_reason_data.timeline.tones import (
    FREQUENCIES,
    SAMPLE_RATE,
    WHISTLE_BEGINNING,
    WHISTLE_END,
    WHISTLE_FREQUENCY,
    render_tones,
)
from longvideo_reason_data.timeline.world import PITCHES, PLACES, Action, WorldSettings, create_world

SMALL = WorldSettings(seconds=12.0, num_scenes=4, scene_seconds=2.0, frames_per_second=2, size_pixels=64)
SOUND = SMALL.model_copy(update={"sound": True})
WORLDS = [create_world(f"sound/{number}", SOUND) for number in range(400)]
LONG = create_world("long", WorldSettings.of_length(777.7, sound=True))

QUESTIONS_BEFORE_SOUND = "175cba3a9dec2bb5a782cb73fd3cdfbaf2ba874c7e74724c8b124d5e55baba51"
FILES_BEFORE_SOUND = ("train_sft-00000-40663f611ce7.mp4", "held_out-00000-36037a0a3416.mp4")
BYTES_BEFORE_SOUND = {"18.1.0": ("72437808", "3ff556df")}
"""Beginnings of the files' digests, by the version of PyAV, which brings the encoder."""


def read_sound(path):
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.slow
def test_without_sound_files_and_questions_are_what_they_were(tmp_path):
    asked = []
    for number in range(20):
        world = create_world(f"fixed/{number}", WorldSettings())
        for asking in create_questions(world, deal_letters("t"), 9):
            assert asking.senses is None
            told = (asking.skill.value, asking.question, asking.options, asking.answer, asking.reasoning)
            asked.append(str(told))
    assert hashlib.sha256("\n".join(asked).encode()).hexdigest() == QUESTIONS_BEFORE_SOUND
    settings = WorldSettings(seconds=12.0, num_scenes=3, scene_seconds=2.0, frames_per_second=2, size_pixels=64)
    videos = {Split.TRAIN_SFT: 1, Split.HELD_OUT: 1}
    records = write_timeline_dataset(tmp_path, settings, videos=videos, questions_per_video=1, seed=3)
    assert tuple(record.media[0].path for record in records) == tuple(f"videos/{name}" for name in FILES_BEFORE_SOUND)
    if (digests := BYTES_BEFORE_SOUND.get(av.__version__)) is not None:
        assert tuple(record.media[0].digest[:8] for record in records) == digests


def test_a_tone_sounds_as_long_as_its_scene_and_a_whistle_always(tmp_path):
    world = WORLDS[0]
    write_video(world, tmp_path / "world.mp4")
    assert VideoFile.open(tmp_path / "world.mp4").frame_count == 24
    heard = read_sound(tmp_path / "world.mp4")
    assert len(heard) == pytest.approx(12 * SAMPLE_RATE, abs=2048)
    edges = [0.0, *(edge for scene in world.scenes for edge in (scene.start_seconds, scene.end_seconds)), 12.0]
    for number, (start, end) in enumerate(pairwise(edges)):
        part = heard[round((start + 0.06) * SAMPLE_RATE) : round((end - 0.06) * SAMPLE_RATE)]
        if len(part) < SAMPLE_RATE // 10:
            continue
        loudest = np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() * SAMPLE_RATE / len(part)
        is_pause = number % 2 == 0
        expected = WHISTLE_FREQUENCY if is_pause else FREQUENCIES[world.pitches[number // 2]]
        assert loudest == pytest.approx(expected, abs=6.0)
        swollen = WHISTLE_BEGINNING * (WHISTLE_END / WHISTLE_BEGINNING) ** ((start + end) / 24)
        assert not is_pause or np.sqrt(2 * np.square(part).mean()) == pytest.approx(swollen, rel=0.3)
    again = create_world(world.name, SOUND)
    write_video(again, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "world.mp4").read_bytes()


def test_samples_do_not_depend_on_the_blocks():
    whole = next(render_tones(WORLDS[1], 12 * SAMPLE_RATE))
    np.testing.assert_array_equal(np.concatenate(list(render_tones(WORLDS[1], 1000))), whole)


def answer_from_scenes(world, question):
    """Compute the answer again, in another way than for the questions."""
    scenes, pitches = list(world.scenes), list(world.pitches)
    if between := re.match(r"Between (\S+)s and (\S+)s: ", question):
        start, end = map(float, between.groups())
        inside = [at for at, scene in enumerate(scenes) if start < scene.start_seconds and scene.end_seconds < end]
        scenes, pitches = [scenes[at] for at in inside], [pitches[at] for at in inside]
        question = question[between.end() :].capitalize()
    if named := re.search(r"(while|right after) the (\w+) tone", question):
        at = pitches.index(named[2]) + (named[1] == "right after")
        return scenes[at].place if question.startswith("Where") else pitches[at]
    if ended := re.search(r"sounds (first|last)", question):
        return pitches[0 if ended[1] == "first" else -1]
    if wanted := re.search(r"comes for (\w+)", question):
        return next(pitch for scene, pitch in zip(scenes, pitches, strict=True) if scene.action.purpose == wanted[1])
    deed = question.removeprefix("Which tone sounds while ").removesuffix("?")
    told = [pitch for scene, pitch in zip(scenes, pitches, strict=True) if scene.sentence().startswith(f"{deed} in")]
    return told[0]


@pytest.mark.parametrize("world", [*WORLDS[:30], LONG])
def test_every_answer_follows_from_scenes_and_tones(world):
    questions = create_questions(world, deal_letters("test"), 30)
    assert {question.senses for question in questions} == set(Senses)
    for question in questions:
        if question.senses is not Senses.PICTURE:
            assert question.options["ABCD".index(question.answer)] == answer_from_scenes(world, question.question)
            assert (
                question.reasoning.count("Around") == question.reasoning.count("tone sounds") == len(question.evidence)
            )
        assert (" in the " in question.reasoning) == (question.senses is not Senses.SOUND)


def test_neither_sense_alone_tells_what_happens_at_a_tone():
    """Whoever only hears knows the order of tones, whoever only sees that of places; both are as good as any other."""
    heard = Counter((pitch, at) for world in WORLDS for at, pitch in enumerate(world.pitches))
    seen = Counter((scene.place, at) for world in WORLDS for at, scene in enumerate(world.scenes))
    met = Counter(
        (pitch, scene.place) for world in WORLDS for scene, pitch in zip(world.scenes, world.pitches, strict=True)
    )
    for counted in (heard, seen, met):
        assert len(counted) == 16
        assert 65 < min(counted.values()) <= max(counted.values()) < 140  # 100 expected
    quiet = Counter(
        PITCHES.index(pitch)
        for world in WORLDS
        for scene, pitch in zip(world.scenes, world.pitches, strict=True)
        if scene.action in (Action.WAIT, Action.MEET)
    )
    assert max(quiet.values()) < 0.3 * quiet.total()
    for world in WORLDS[:50]:
        assert sorted(world.pitches) == sorted(PITCHES)
        assert sorted(scene.place for scene in world.scenes) == sorted(PLACES)


def test_most_questions_need_both_and_skills_are_asked_in_turn():
    asked = [question for world in WORLDS for question in create_questions(world, deal_letters("test"), 6)]
    both = Counter(question.skill for question in asked if question.senses is Senses.BOTH)
    assert both.total() > len(asked) / 2
    assert set(both) == set(Skill)
    assert min(both.values()) > 0.1 * both.total()


@pytest.mark.slow
def test_records_say_which_senses_are_needed_and_old_files_read_as_before(tmp_path, capsys):
    assert main(["timeline", "--output", str(tmp_path / "world"), "--videos", "2", "--seconds", "8", "--sound"]) == 0
    path = tmp_path / "world" / "records.parquet"
    records = read_records(path)
    assert {record.senses for record in records} == set(Senses)
    for video in (tmp_path / "world" / "videos").iterdir():
        with av.open(str(video)) as container:
            assert [stream.type for stream in container.streams] == ["video", "audio"]
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["senses"]), tmp_path / "old.parquet")
    assert read_records(tmp_path / "old.parquet") == [record.model_copy(update={"senses": None}) for record in records]
