"""Engine and trainer read what the data package writes: one rendered world through all three.

Pyright checks that `VideoFile` has the members of the engine's `Video`, where the trainer passes one to the other;
these tests check what types don't express.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from longrl_trainer.config.sections import DataSection, ModelSection
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.training.opening import open_policy
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.media.video_file import VideoFile, sample_frames
from longvideo_reason_data.records.medium import resolve_medium
from longvideo_reason_data.records.record import QuestionRecord, Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings
from mrsp_engine.encoding.video import Video
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout.base import SamplingSettings
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

NUM_FRAMES = 6
NUM_VIDEOS = {Split.TRAIN_SFT: 2, Split.TRAIN_RL: 1, Split.HELD_OUT: 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[QuestionRecord]]:
    folder = tmp_path_factory.mktemp("world")
    settings = WorldSettings(seconds=8.0, num_scenes=3, scene_seconds=1.0, frames_per_second=2, size_pixels=64)
    return folder, write_timeline_dataset(folder, settings, videos=NUM_VIDEOS, questions_per_video=3, seed=5)


@pytest.fixture(scope="module")
def policy(dataset: tuple[Path, list[QuestionRecord]], tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("model")
    create_tiny_qwen2_5_vl(folder / "model", corpus=[record.reasoning for record in dataset[1]])
    return open_policy(ModelSection(folder=folder / "model", store=folder / "embeddings", device="cpu"), "float32")


@pytest.mark.slow
def test_a_rendered_world_is_a_sound_dataset(dataset):
    folder, records = dataset
    assert {record.split for record in records} == set(Split)
    assert [problem for problem in check_dataset(folder) if "letters" not in problem] == []


def test_a_video_file_keeps_the_promises_of_the_engines_video(dataset):
    folder, records = dataset
    path = resolve_medium(folder, records[0].media[0])
    video: Video = VideoFile.open(path)
    for member in vars(Video):
        assert member.startswith("_") or hasattr(video, member), member
    assert video.content_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert video.timestamps.dtype == np.float64
    assert video.timestamps.shape == (video.frame_count,) == (16,)
    assert (np.diff(video.timestamps) > 0).all()
    frames = video.read([0, 3, 15])
    assert frames.dtype == np.uint8
    assert frames.shape == (3, video.height, video.width, 3)
    np.testing.assert_array_equal(video.read([3])[0], frames[1])


@pytest.mark.slow
@pytest.mark.parametrize("split", Split)
def test_the_trainer_reads_every_question_and_encodes_every_video_once(dataset, policy, split):
    folder, records = dataset
    data = DataSection(dataset=folder, split=split.value, num_frames=NUM_FRAMES)
    before = policy.store.counters.encodes
    questions = load_questions(data, policy, progress=SilentProgress(), learn_responses=True)
    assert questions.dropped == ()
    assert [question.record for question in questions.kept] == [record for record in records if record.split == split]
    assert policy.store.counters.encodes - before == NUM_VIDEOS[split]

    again = load_questions(data, policy, progress=SilentProgress())
    assert again.kept == questions.kept
    assert policy.store.counters.encodes - before == NUM_VIDEOS[split]


def test_an_embedding_refers_to_the_frames_that_were_planned(dataset, policy):
    folder, records = dataset
    video = VideoFile.open(resolve_medium(folder, records[0].media[0]))
    plan = sample_frames(video, num_frames=NUM_FRAMES)
    medium = policy.encode_video(video, plan)
    assert medium.grid_thw[0] == NUM_FRAMES // 2
    mean_interval = (video.timestamps[plan[-1]] - video.timestamps[plan[0]]) / (NUM_FRAMES - 1)
    assert medium.seconds_per_grid == pytest.approx(2 * mean_interval, rel=1e-6)
    other = policy.encode_video(video, [index - 1 for index in plan[1:]])
    assert other.key != medium.key


def test_a_question_reaches_the_sampler_and_comes_back_as_text(dataset, policy):
    from longrl_trainer.questions.question import build_question_prompt
    from mrsp_engine.rollout.transformers import TransformersRolloutEngine

    data = DataSection(dataset=dataset[0], split="held_out", num_frames=NUM_FRAMES)
    question = load_questions(data, policy, progress=SilentProgress()).kept[0]
    prompt = build_question_prompt(policy, question, None)
    assert prompt.media == question.media
    settings = SamplingSettings(temperature=1.0, max_tokens=4, num_samples=2, seed=0)
    (rollouts,) = TransformersRolloutEngine(policy).generate([prompt], settings)
    assert [len(rollout.token_ids) == len(rollout.logprobs) for rollout in rollouts] == [True, True]
    assert all(1 <= len(rollout.token_ids) <= 4 for rollout in rollouts)
