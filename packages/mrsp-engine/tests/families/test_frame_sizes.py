"""Sizes of frames: equal to transformers' processors to the pixel, within every budget, and computed without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as resize_frame
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_video

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import FrameBudget
from mrsp_engine.errors import EngineUsageError, UnfitMediumError
from mrsp_engine.families import load_policy
from mrsp_engine.families.published_frames import read_published_frames
from mrsp_engine.families.qwen.frame_sizes import QwenFrames
from mrsp_engine.families.qwen.processor_files import read_frames
from mrsp_engine.families.qwen.vision import QwenVisionEncoder
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.published import write_published

SINGLE = QwenFrames(patch_size=14, merge_size=2, frames_per_group=2, min_pixels=3136, max_pixels=12845056)
WHOLE = QwenFrames(
    patch_size=16, merge_size=2, frames_per_group=2, min_pixels=4096, max_pixels=25165824, is_whole_video=True
)
sides = st.integers(1, 2200)


@settings(deadline=None, max_examples=300)
@given(height=sides, width=sides, num_frames=st.integers(1, 1200))
def test_sizes_are_those_of_transformers(height: int, width: int, num_frames: int) -> None:
    for frames in (SINGLE, WHOLE):
        limits: dict[str, Any] = {
            "factor": frames.factor,
            "min_pixels": frames.min_pixels,
            "max_pixels": frames.max_pixels,
        }
        try:
            if frames.is_whole_video:
                expected = resize_video(max(num_frames, 2), height, width, temporal_factor=2, **limits)
            else:
                expected = resize_frame(height, width, **limits)
        except ValueError:
            with pytest.raises(UnfitMediumError, match="more than 200 times the other"):
                frames.size(height, width, num_frames)
        else:
            assert frames.size(height, width, num_frames) == expected


@settings(deadline=None, max_examples=300)
@given(
    height=sides,
    width=sides,
    num_frames=st.integers(1, 1200),
    frame_pixels=st.none() | st.integers(1, 400_000),
    video_tokens=st.none() | st.integers(1, 100_000),
)
def test_a_budget_is_kept_or_the_video_refused(
    height: int, width: int, num_frames: int, frame_pixels: int | None, video_tokens: int | None
) -> None:
    budget = FrameBudget(frame_pixels=frame_pixels, video_tokens=video_tokens)
    for frames in (SINGLE, WHOLE):
        try:
            rows, columns = frames.size(height, width, num_frames, budget)
        except UnfitMediumError:
            continue
        assert rows % frames.factor == columns % frames.factor == 0
        assert frame_pixels is None or rows * columns <= frame_pixels
        assert video_tokens is None or frames.num_tokens(rows, columns, num_frames) <= video_tokens


@pytest.mark.parametrize("frames", [SINGLE, WHOLE])
def test_a_budget_shrinks_frames_no_more_than_it_must(frames: QwenFrames) -> None:
    assert frames.size(720, 1280, 128, FrameBudget(frame_pixels=10**8, video_tokens=10**8)) == frames.size(
        720, 1280, 128
    )
    rows, columns = frames.size(720, 1280, 128, FrameBudget(frame_pixels=128 * 28 * 28))
    assert 0.8 * 128 * 28 * 28 < rows * columns <= 128 * 28 * 28
    rows, columns = frames.size(720, 1280, 128, FrameBudget(video_tokens=8192))
    assert 0.8 * 8192 < frames.num_tokens(rows, columns, 128) <= 8192
    # Below the checkpoint's minimum pixels too.
    assert frames.size(20, 30, 2, FrameBudget(frame_pixels=frames.factor**2)) == (frames.factor, frames.factor)
    with pytest.raises(UnfitMediumError, match=r"64 embeddings, .*at most video_tokens=63; lower the number of frames"):
        frames.size(720, 1280, 128, FrameBudget(video_tokens=63))
    with pytest.raises(UnfitMediumError, match="expected at most 400 pixels by frame_pixels=400"):
        frames.size(720, 1280, 128, FrameBudget(frame_pixels=400))
    with pytest.raises(EngineUsageError, match="video_tokens=0: expected 1 or more"):
        FrameBudget(video_tokens=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["qwen2_5_vl", "qwen3_vl", "qwen2_vl_2b", "qwen2_5_vl_3b", "qwen3_vl_4b", "qwen3_vl_30b_a3b"]
)
def test_files_say_what_the_loaded_processor_says(kind: str, tmp_path: Path) -> None:
    (write_published if kind[-1] == "b" else build_tiny)(kind, tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "store"))
    encoder = policy.encoder
    assert isinstance(encoder, QwenVisionEncoder)
    assert read_frames(tmp_path / "model", policy.name) == encoder._frames("video")
    loaded = policy.processor.video_processor  # type: ignore[attr-defined]
    named = {name: getattr(loaded, name, None) for name in ("num_frames", "fps", "min_frames", "max_frames")}
    assert read_published_frames(tmp_path / "model") == {name: value for name, value in named.items() if value}


@pytest.mark.parametrize("kind", ["qwen2_vl_2b", "qwen2_5_vl_3b", "qwen3_vl_4b"])
def test_nobody_is_warned_of_what_does_not_count(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Published files don't say whether frames are capped, for which transformers has a warning."""
    write_published(kind, tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "store"))
    policy.freeze_vision()
    for medium in (policy.encode_video(NoiseVideo(), range(4)), policy.encode_image(NoiseVideo(frame_count=1))):
        assert policy.store.contains(medium.key)
    assert not caplog.messages


def test_vila_names_its_most_frames(tmp_path: Path) -> None:
    write_published("nvila_8b", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    text = path.read_text()
    assert '"num_video_frames": 8' in text
    assert read_published_frames(tmp_path / "model") == {"num_frames": 8}
    path.write_text(text.replace('"num_video_frames": 8', '"num_video_frames": 256, "fps": 2.0', 1))
    found = read_published_frames(tmp_path / "model")
    assert found in ({"fps": 2.0, "max_frames": 256}, {"num_frames": 256})


@pytest.mark.slow
def test_a_policy_keeps_the_budget_of_a_video(tmp_path: Path) -> None:
    for family in ("qwen2_5_vl", "qwen3_vl", "vila"):
        build_tiny(family, tmp_path / family)
        policy = load_policy(tmp_path / family, store=EmbeddingStore(tmp_path / "store"))
        policy.freeze_vision()
        video = NoiseVideo(height=224, width=448)
        plain = policy.encode_video(video, range(8))
        assert policy.encode_video(video, range(8), budget=FrameBudget(video_tokens=plain.num_tokens)) == plain
        if family == "vila":
            with pytest.raises(UnfitMediumError, match="lower the number of frames"):
                policy.encode_video(video, range(8), budget=FrameBudget(video_tokens=plain.num_tokens - 1))
            continue
        smaller = policy.encode_video(video, range(8), budget=FrameBudget(video_tokens=plain.num_tokens // 2))
        assert smaller.num_tokens <= plain.num_tokens // 2
        assert smaller.key != plain.key
        stored = policy.store.get(smaller.key)
        assert stored is not None
        assert len(stored) == smaller.num_tokens


def test_counting_needs_no_torch() -> None:
    code = "import sys, mrsp_engine.families.published_frames; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
