"""Two hours of video, 8,192 frames: decoded and encoded within two gibibytes of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from longvideo_reason_data.timeline.rendering import write_video
from longvideo_reason_data.timeline.world import WorldSettings, create_world
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

NUM_FRAMES = 8192

ENCODE = """
import sys
from pathlib import Path
from longvideo_reason_data.media.video_file import VideoFile, sample_frames
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
policy = load_policy(Path(sys.argv[1]), store=EmbeddingStore(Path(sys.argv[2])))
policy.freeze_vision()
video = VideoFile.open(sys.argv[3], num_threads=1)
medium = policy.encode_video(video, sample_frames(video, num_frames=int(sys.argv[4])))
# Not what getrusage says: that includes what the parent had before this program began.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(medium.key, medium.num_tokens, int(peak.split()[1]) * 1024)
"""


@pytest.mark.long
def test_a_two_hour_file_is_encoded_within_two_gibibytes(tmp_path: Path) -> None:
    settings = WorldSettings(seconds=7200, frames_per_second=2, size_pixels=112, num_scenes=20)
    write_video(create_world("long", settings), tmp_path / "long.mp4")
    create_tiny_qwen2_5_vl(
        tmp_path / "model", corpus=["a film"], hidden_size=64, num_heads=2, num_layers=1, intermediate_size=64
    )
    run = subprocess.run(
        [sys.executable, "-c", ENCODE, tmp_path / "model", tmp_path / "store", tmp_path / "long.mp4", str(NUM_FRAMES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    key, num_tokens, peak_bytes = run.stdout.split()
    stored = EmbeddingStore(tmp_path / "store").get(key)
    assert stored is not None
    assert stored.shape[0] == int(num_tokens) == NUM_FRAMES // 2 * 16  # 112 pixels: 4 × 4 rows per two frames
    assert int(peak_bytes) < 2 << 30
