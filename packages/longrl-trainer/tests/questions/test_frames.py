"""From settings to frames: counts, bounds and presets, and which of two conflicting settings wins."""

import json

import numpy as np
import pytest

from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import DataSection, FrameSettings
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.questions.frames import describe_frames, frame_budget, plan_frames, resolve_frames
from mrsp_engine.encoding.frame_budget import FrameBudget


class Film:
    """Ten minutes at 2 frames per second."""

    frame_count = 1200
    timestamps = np.arange(1200) / 2
    duration_seconds = 600.0


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"num_frames": 128}, 128),
        ({"num_frames": 5000}, 1200),
        ({"fps": 0.5}, 300),
        ({"fps": 24.0}, 1200),
        ({"fps": 1.0, "max_frames": 512}, 512),
        ({"fps": 0.01, "min_frames": 32}, 32),
        ({"fps": 0.01}, 6),
        ({"fps": 0.01, "min_frames": 4, "max_frames": 8}, 6),
    ],
)
def test_frames_are_counted(settings, count):
    chosen = plan_frames(Film(), FrameSettings(**settings))
    assert len(chosen) == count == len(set(chosen))


@pytest.fixture
def checkpoint(tmp_path):
    """The files of a Qwen3-VL and of a VILA."""
    for name, config in (
        ("qwen", {"model_type": "qwen3_vl"}),
        ("vila", {"model_type": "vila", "num_video_frames": 64}),
        ("text", {"model_type": "qwen2"}),
        ("older", {"model_type": "qwen2_5_vl"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for name in ("qwen", "older"):
        (tmp_path / name / "preprocessor_config.json").write_text('{"min_pixels": 3136}')
    return tmp_path


def test_presets_fill_in_what_is_not_set(checkpoint):
    def resolved(folder="qwen", **settings):
        found = resolve_frames(FrameSettings(**settings), checkpoint / folder)
        assert found.preset is None
        return found.model_dump(exclude_none=True, exclude={"pictures", "sound"})

    paper = {"num_frames": 256, "frame_pixels": 100352}
    assert resolved(preset="longvila_r1") == paper
    assert resolved(preset="longvila_r1", num_frames=8, video_tokens=500) == paper | {
        "num_frames": 8,
        "video_tokens": 500,
    }
    assert resolved(preset="longvila_r1", fps=2.0) == {"fps": 2.0, "frame_pixels": 100352}
    hour = {"fps": 1.0, "max_frames": 3600, "frame_pixels": 100352}
    assert resolved(preset="longvila_r1_hour") == hour
    assert resolved(preset="longvila_r1_hour", max_frames=100, frame_pixels=9) == hour | {
        "max_frames": 100,
        "frame_pixels": 9,
    }
    assert resolved(preset="longvila_r1_hour", num_frames=100) == {"num_frames": 100, "frame_pixels": 100352}
    assert resolved(preset="checkpoint") == {"fps": 2, "min_frames": 4, "max_frames": 768}
    assert resolved(preset="checkpoint", folder="vila") == {"num_frames": 64}
    assert resolved(preset="checkpoint", folder="older", fps=1.0) == {"fps": 1.0, "min_frames": 4, "max_frames": 768}
    for folder in ("text", "older"):
        with pytest.raises(
            TrainerUsageError, match=r"specify neither a number of frames nor a rate; set data\.num_frames"
        ):
            resolved(preset="checkpoint", folder=folder)
    assert resolved(num_frames=3) == {"num_frames": 3}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "num_frames is missing; set it, or fps, or a preset"),
        ({"num_frames": 8, "fps": 1.0}, r"num_frames=8 with fps=1\.0: set one of them"),
        ({"num_frames": 8, "max_frames": 9}, "num_frames=8 with max_frames=9: set one of them"),
        ({"fps": 1.0, "min_frames": 9, "max_frames": 8}, "min_frames=9: expected at most max_frames=8"),
        ({"num_frames": 0}, r"num_frames: got 0, expected: greater than or equal to 1"),
        ({"fps": 0}, "fps: got 0"),
        ({"num_frames": 8, "video_tokens": 0}, "video_tokens: got 0"),
        ({"preset": "paper"}, "preset: got .paper., expected: 'checkpoint', 'longvila_r1'"),
    ],
)
def test_settings_that_disagree_are_one_line(settings, words):
    with pytest.raises(TrainerUsageError, match=words) as caught:
        parse_config({"dataset": "d", "split": "held_out"} | settings, DataSection, source="recipe")
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_words_and_budgets():
    assert describe_frames(FrameSettings(num_frames=8)) == "8 frames"
    assert describe_frames(FrameSettings(fps=0.5)) == "0.5 frames per second"
    assert describe_frames(FrameSettings(preset="checkpoint")) == "frames of checkpoint"
    assert frame_budget(FrameSettings(frame_pixels=7, video_tokens=8)) == FrameBudget(frame_pixels=7, video_tokens=8)
