"""Encoding onto a full disk ends with one line, status 1 and the number of videos that are stored."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings
from mrsp_engine.tiny.families import build_tiny

NUM_VIDEOS = 4


@dataclass(frozen=True)
class Material:
    """A model, and videos to encode with it."""

    model: Path
    videos: Path

    def options(self, store: Path) -> list[str]:
        return ["--model", str(self.model), "--store", str(store), "--num-frames", "4"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("encode")
    build_tiny("qwen2_5_vl", folder / "model")
    settings = WorldSettings(seconds=16.0, num_scenes=4, scene_seconds=2.0)
    write_timeline_dataset(
        folder / "world", settings, videos={Split.HELD_OUT: NUM_VIDEOS}, questions_per_video=1, seed=0
    )
    return Material(folder / "model", folder / "world" / "videos")


def entries_in(store: Path) -> list[Path]:
    return sorted(store.glob("??/*.safetensors"))


@pytest.mark.slow
def test_a_full_disk_ends_with_the_number_that_is_stored(longrl, material, tmp_path):
    store = tmp_path / "store"
    first = Path(shutil.copy(sorted(material.videos.iterdir())[0], tmp_path))
    assert longrl("encode", first, *material.options(store)).returncode == 0
    words = longrl.line("encode", material.videos, *material.options(store))
    limited = ["sh", "-c", 'ulimit -f 4; exec "$@"', "sh", *words]  # files of two kibibytes at most
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {store}: the disk takes no more, 1 of {NUM_VIDEOS} videos are stored")
    assert "Traceback" not in done.stderr
    assert "1 videos, 0 newly encoded" in done.stdout
    assert len(entries_in(store)) == 1
