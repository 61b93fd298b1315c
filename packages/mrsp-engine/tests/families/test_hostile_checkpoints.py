"""Checkpoints from elsewhere: what isn't a model's is one line, soon, and nothing outside is read into it."""

import io
import json
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.planner.checkpoints import read_shape
from mrsp_engine.rollout.vllm.requests import SamplerCheckpoint
from mrsp_engine.testing.hostile_checkpoints import (
    HOSTILE_CHECKPOINTS,
    HOSTILE_KIND,
    HOSTILE_PARTS,
    HOSTILE_PARTS_KIND,
)
from mrsp_engine.tiny.published import PUBLISHED_KINDS, write_published

pytestmark = pytest.mark.timeout(60)
CASES = [(HOSTILE_KIND, name) for name in HOSTILE_CHECKPOINTS] + [(HOSTILE_PARTS_KIND, name) for name in HOSTILE_PARTS]
MOST_SECONDS = 20.0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    for kind in (HOSTILE_KIND, HOSTILE_PARTS_KIND):
        write_published(kind, root / kind)
    return root


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(path.relative_to(folder)): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (status.st_mode, status.st_size, status.st_mtime_ns) for name, status in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_is_refused_in_one_line(
    kind: str, name: str, sound: Path, tmp_path: Path, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115 - nothing may be asked
    folder, outside = tmp_path / "model", tmp_path / "outside"
    shutil.copytree(sound / kind, folder)
    (HOSTILE_CHECKPOINTS if kind == HOSTILE_KIND else HOSTILE_PARTS)[name](folder, outside)
    before, started = snapshot(tmp_path), time.monotonic()
    with pytest.raises(EngineUsageError) as caught:
        load_policy(folder, store=store).build_prompt("text", [])
    assert time.monotonic() - started < MOST_SECONDS
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).replace(str(folder), "")) < 400
    assert snapshot(tmp_path) == before
    # A planner and a sampler that are given the folder alone may take what isn't their business, and nothing worse.
    for other in (read_shape, SamplerCheckpoint):
        with suppress(EngineUsageError):
            other(folder)
    assert snapshot(tmp_path) == before


def test_code_beside_a_tokenizer_is_neither_run_nor_asked_about(
    tmp_path: Path, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_published("qwen2_5_1_5b", tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'was run')!r})\n")
    path = tmp_path / "model" / "tokenizer_config.json"
    settings = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with suppress(EngineUsageError):
        load_policy(tmp_path / "model", store=store)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_published_layouts_are_admitted(kind: str, tmp_path: Path) -> None:
    write_published(kind, tmp_path / "model")
    folder = CheckpointFolder(tmp_path / "model")
    folder.admit()
    for part in ("llm", "vision_tower"):
        if (folder.path / part).is_dir():
            folder.part(part).admit()


def as_pickles(folder: Path, store: EmbeddingStore) -> dict[str, torch.Tensor]:
    """Turn a checkpoint's weights into the older form."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def test_pickles_are_read_when_they_are_asked_for_and_never_sampled_from(tmp_path: Path, store: EmbeddingStore) -> None:
    folder = tmp_path / "model"
    write_published("qwen2_5_1_5b", folder)
    before = load_policy(folder, store=store).model.state_dict()
    as_pickles(folder, store)
    with pytest.raises(EngineUsageError, match=r"as pickles .*--model\.allow-pickle-weights"):
        load_policy(folder, store=store)
    policy = load_policy(folder, store=store, allow_pickle_weights=True)
    for name, tensor in policy.model.state_dict().items():
        assert tensor.equal(before[name]), name
    with pytest.raises(EngineUsageError, match="no weights as safetensors, and vLLM is given nothing else"):
        SamplerCheckpoint(folder)
    policy.save(tmp_path / "saved")
    SamplerCheckpoint(tmp_path / "saved")


class Planted:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(Planted.path),)

    path = Path("unset")


def test_a_pickle_runs_nothing_even_when_allowed(tmp_path: Path, store: EmbeddingStore) -> None:
    folder = tmp_path / "model"
    write_published("qwen2_5_1_5b", folder)
    weights = as_pickles(folder, store)
    Planted.path = tmp_path / "was run"
    torch.save({**weights, "planted": Planted()}, folder / "pytorch_model.bin")
    with pytest.raises(EngineUsageError) as caught:
        load_policy(folder, store=store, allow_pickle_weights=True)
    assert "\n" not in str(caught.value)
    assert not Planted.path.exists()


def test_a_hubs_cache_is_loaded_as_it_is_and_its_links_lead_nowhere_else(tmp_path: Path, store: EmbeddingStore) -> None:
    write_published("qwen2_5_1_5b", tmp_path / "model")
    snapshot_folder, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot_folder.mkdir(parents=True)
    blobs.mkdir()
    for path in (tmp_path / "model").iterdir():
        path.rename(blobs / path.name)
        (snapshot_folder / path.name).symlink_to(Path("../../blobs") / path.name)
    load_policy(snapshot_folder, store=store).build_prompt("text", [])
    (blobs / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (blobs / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(EngineUsageError, match="is a link"):
        load_policy(snapshot_folder, store=store)
    (blobs / "tokenizer.json").unlink()
    os.mkfifo(blobs / "tokenizer.json")
    assert stat.S_ISFIFO((snapshot_folder / "tokenizer.json").stat().st_mode)
    with pytest.raises(EngineUsageError, match="is a FIFO"):
        load_policy(snapshot_folder, store=store)
