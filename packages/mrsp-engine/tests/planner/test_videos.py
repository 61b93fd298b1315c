"""The planner counts a video's tokens like a run does, for every family, size, number of frames and budget."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.errors import UnfitMediumError
from mrsp_engine.families import load_policy
from mrsp_engine.planner.checkpoints import read_shape
from mrsp_engine.planner.published import MODELS
from mrsp_engine.planner.videos import PlannedVideo, count_as_qwen
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny, create_tiny_vila
from mrsp_engine.tiny.published import write_published

PAPER = FrameBudget(frame_pixels=128 * 28 * 28)
BUDGETS = (UNLIMITED, PAPER, FrameBudget(video_tokens=4000), FrameBudget(frame_pixels=50_000, video_tokens=9000))
SIZES = ((720, 1280), (1080, 1920), (1280, 720), (240, 320), (100, 60), (6, 10), (4, 900))


def build(kind: str, folder: Path) -> None:
    if kind == "pooled vila":
        create_tiny_vila(folder, pool_frames=4, projector_type="mlp_downsample_3x3_fix")
    elif kind in ("qwen2_5_vl", "qwen3_vl", "vila"):
        build_tiny(kind, folder)
    else:
        write_published(kind, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["qwen2_5_vl", "qwen3_vl", "vila", "pooled vila", "qwen2_5_vl_3b", "qwen3_vl_4b", "nvila_8b"]
)
def test_plan_and_run_count_alike(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path / "model")
    shape = read_shape(tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "store"))
    assert policy.encoder is not None
    assert shape.max_positions == policy.max_positions
    assert shape.vision is not None
    assert shape.vision.videos is not None
    policy.freeze_vision()
    alone = policy.prompt_length("Why?", [])
    counted = 0
    for height, width in SIZES:
        for num_frames in (1, 2, 7, 64, 128, 1024):
            video = NoiseVideo(frame_count=num_frames, height=height, width=width, frames_per_second=0.3)
            seconds = tuple(float(time) for time in np.asarray(video.timestamps))
            for budget in BUDGETS:
                planned = PlannedVideo(height=height, width=width, seconds=seconds, budget=budget)
                try:
                    layout = policy.encoder.plan(video, range(num_frames), budget=budget)
                except UnfitMediumError as refusal:
                    with pytest.raises(UnfitMediumError, match=re.escape(str(refusal))):
                        shape.vision.videos.count(planned)
                    continue
                found = shape.vision.videos.count(planned)
                assert found.embeddings == layout.reference.num_tokens
                assert found.frame_pixels == layout.layout.height * layout.layout.width
                assert alone + found.tokens == policy.prompt_length("Why?", [layout.reference])
                assert alone + found.positions == policy.prompt_positions("Why?", [layout.reference])
                counted += 1
    assert counted > 30


def test_public_models_by_name_count_as_their_published_files_say(tmp_path: Path) -> None:
    for name, kind in (("Qwen2.5-VL-3B", "qwen2_5_vl_3b"), ("Qwen3-VL-4B", "qwen3_vl_4b")):
        write_published(kind, tmp_path / kind)
        by_name, by_files = MODELS[name].vision, read_shape(tmp_path / kind).vision
        assert by_name is not None
        assert by_files is not None
        assert by_name.videos is not None
        assert by_name.videos.frames == by_files.videos.frames  # type: ignore[attr-defined,union-attr]
    seconds = tuple(map(float, range(128)))
    video = PlannedVideo(height=720, width=1280, seconds=seconds)
    qwen, vila = MODELS["Qwen2.5-VL-7B"].vision, MODELS["LongVILA-R1-7B"].vision
    assert qwen is not None
    assert vila is not None
    assert qwen.videos is not None
    assert vila.videos is not None
    assert qwen.videos.count(video).embeddings == 76_544
    assert vila.videos.count(video).tokens == 128 * 257


def test_qwens_tokens_of_what_stands_around_a_video() -> None:
    # As in the published tokenizer: punctuation, single digits, and a word with its space.
    assert [count_as_qwen(text) for text in ("<0.5 seconds>", "<12.5 seconds>", "\n", "", "<1234.0 seconds>")] == [
        6,
        7,
        1,
        0,
        9,
    ]


def test_a_folders_shape_needs_no_torch(tmp_path: Path) -> None:
    create_tiny_vila(tmp_path / "vila")
    build_tiny("qwen3_vl", tmp_path / "qwen")
    code = (
        "import sys; from pathlib import Path; from mrsp_engine.planner.checkpoints import read_shape; "
        "[read_shape(Path(folder)) for folder in sys.argv[1:]]; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "vila"), str(tmp_path / "qwen")]
    assert subprocess.run(arguments, check=False).returncode == 0
