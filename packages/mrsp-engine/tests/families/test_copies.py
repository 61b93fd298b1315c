"""What is saved is what was published, with new weights: same files, names, shards and dtypes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.copies import checkpoint_files, write_copy
from mrsp_engine.testing.agreement import disturb_weights
from mrsp_engine.tiny.published import PUBLISHED_KINDS, write_published

KINDS = tuple(PUBLISHED_KINDS)
NOT_TRAINED = ("mtp.", "talker.", "token2wav.", "thinker.audio_tower.")
"""Weights that predict further tokens or speak, which aren't loaded, and those that hear, which stay frozen."""
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for kind in KINDS:
        write_published(kind, root / kind)
    return root


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint that a test may change."""

    def write(kind: str) -> Path:
        write_published(kind, tmp_path / "own")
        return tmp_path / "own"

    return write


def load(folder: Path, store: EmbeddingStore, dtype: torch.dtype = torch.float32) -> Policy:
    return load_policy(folder, dtype=dtype, store=store)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[tuple[str, str], Tensor]:
    """Weights by file and name."""
    return {
        (str(path.relative_to(folder)), name): tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_is_the_same_to_the_byte(folders: Path, kind: str, store: EmbeddingStore, tmp_path: Path) -> None:
    """Weights too, because float32 represents every bfloat16 number."""
    load(folders / kind, store).save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == contents(folders / kind)


def test_what_predicts_further_tokens_may_be_missing(folders: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    folder, (saved, refused) = folders / "qwen3_5_27b", (tmp_path / "saved", tmp_path / "refused")
    held = load(folder, store).checkpoint_weights()
    for target in (saved, refused):
        target.mkdir()
    write_copy(folder, saved, held, is_whole=True, outside=[tmp_path])
    assert contents(saved) == contents(folder)
    without = {"": {name: tensor for name, tensor in held[""].items() if not name.endswith("A_log")}}
    with pytest.raises(EngineError, match=r"holds .*A_log, which the model hasn't"):
        write_copy(folder, refused, without, is_whole=True, outside=[tmp_path])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_numbers_alone(folders: Path, kind: str, store: EmbeddingStore, tmp_path: Path) -> None:
    policy = load(folders / kind, store)
    disturb_weights(policy)
    policy.save(tmp_path / "saved")
    before, after = contents(folders / kind), contents(tmp_path / "saved")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith(".safetensors")}
    old, new = weights(folders / kind), weights(tmp_path / "saved")
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        assert (tensor.dtype, tensor.shape) == (torch.bfloat16, old[name].shape)
        assert tensor.equal(old[name]) == name[1].startswith(NOT_TRAINED), name
    again = load(tmp_path / "saved", store).model.state_dict()
    for name, tensor in policy.model.state_dict().items():
        assert again[name].equal(tensor.bfloat16().float()), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl_3b", "qwen3_vl_8b", "qwen2_5_1_5b", "nvila_8b"])
def test_an_exact_copy_loses_nothing(folders: Path, kind: str, store: EmbeddingStore, tmp_path: Path) -> None:
    policy = load(folders / kind, store, torch.float64)
    disturb_weights(policy)
    policy.save(tmp_path / "exact", exact=True)
    again = load(tmp_path / "exact", store, torch.float64)
    for name, tensor in policy.model.state_dict().items():
        assert again.model.state_dict()[name].equal(tensor), name
    assert weights(folders / kind).keys() == weights(tmp_path / "exact").keys()
    for path in (tmp_path / "exact").rglob(INDEX):
        index = json.loads(path.read_text())
        sizes = [tensor.nbytes for file in path.parent.glob("*.safetensors") for tensor in load_file(file).values()]
        assert index["metadata"]["total_size"] == sum(sizes)

    # Resuming from there ends with the published layout.
    again.source = folders / kind
    again.save(tmp_path / "continued")
    policy.save(tmp_path / "straight")
    assert contents(tmp_path / "continued") == contents(tmp_path / "straight")


def test_a_snapshot_of_links(folders: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    """A hub's cache has files under their digests, and a snapshot of links to them, here read-only as well."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for number, name in enumerate(contents(folders / "nvila_lite_2b")):
        blob = blobs / str(number)
        blob.parent.mkdir(exist_ok=True)
        shutil.copyfile(folders / "nvila_lite_2b" / name, blob)
        blob.chmod(0o444)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    load(snapshot, store).save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == contents(folders / "nvila_lite_2b")
    assert not any(path.is_symlink() for path in (tmp_path / "saved").rglob("*"))
    (tmp_path / "saved" / "README.md").write_text("mine")


@pytest.mark.parametrize("name", ["config.json", "llm", "LICENSE", "docs/plan"])
def test_nothing_is_copied_through_a_link(folders: Path, store: EmbeddingStore, tmp_path: Path, name: str) -> None:
    """Neither a file nor a folder of another place, were it there before the model was loaded or came later."""
    folder, outside = tmp_path / "own", tmp_path / "outside"
    shutil.copytree(folders / "longvila_r1_7b", folder)
    policy = load(folder, store)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    if (folder / name).exists():
        (folder / name).rename(outside / "moved")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside / ("moved" if (outside / "moved").exists() else "secret"))
    with pytest.raises(EngineError, match="is a link") as caught:
        policy.save(tmp_path / "saved")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "saved").exists()
    with pytest.raises(EngineError, match="is a link"):
        checkpoint_files(folder)


def test_what_goes_along_and_what_stays(own: Callable[[str], Path], store: EmbeddingStore, tmp_path: Path) -> None:
    folder = own("qwen2_5_vl_3b")
    expected = contents(folder)
    for name in ("figures/one/plot.png", "docs/templates/tool.jinja", ".hidden", "notes.bin.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0" + name.encode())
        expected[name] = (folder / name).read_bytes()
    for name in (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "gguf/q4.gguf",
        ".git/config",
        ".cache/huggingface/download/config.json.metadata",
        "__pycache__/modeling.cpython-311.pyc",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"old")
    load(folder, store).save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == expected


def test_saving_inside_and_over_the_source(own: Callable[[str], Path]) -> None:
    folder = own("qwen2_5_1_5b")
    expected = contents(folder)
    policy = load(folder, EmbeddingStore(folder / "embeddings"))
    for _ in range(2):
        policy.save(folder / "runs" / "first" / "model")
        assert contents(folder / "runs" / "first" / "model") == expected
    shutil.rmtree(folder / "runs")
    disturb_weights(policy)
    policy.save(folder)
    assert contents(folder).keys() == expected.keys()
    again = load(folder, policy.store)
    for name, tensor in policy.model.state_dict().items():
        assert again.model.state_dict()[name].equal(tensor.bfloat16().float()), name


def test_a_tied_head_with_a_place_of_its_own(own: Callable[[str], Path], store: EmbeddingStore, tmp_path: Path) -> None:
    """Some tied models are published with a written head, and with tensors that no class has."""
    folder = own("qwen2_5_1_5b")
    path = folder / "model.safetensors"
    content = load_file(path)
    content["lm_head.weight"] = content["model.embed_tokens.weight"].clone()
    content["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(16, dtype=torch.float32)
    content["model.norm.weight"] = content["model.norm.weight"].float()  # formats may differ within a file
    save_file(content, path)  # without metadata
    policy = load(folder, store)
    disturb_weights(policy)
    policy.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in saved.items()} == {
        name: tensor.dtype for name, tensor in content.items()
    }
    assert saved["lm_head.weight"].equal(saved["model.embed_tokens.weight"])
    assert not saved["lm_head.weight"].equal(content["lm_head.weight"])
    assert saved["model.norm.weight"].equal(policy.model.get_parameter("model.norm.weight"))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert saved[name].equal(content[name])
    with safe_open(path, "pt") as old, safe_open(tmp_path / "saved" / "model.safetensors", "pt") as new:
        assert old.metadata() == new.metadata() is None


def test_weights_in_another_form(own: Callable[[str], Path], store: EmbeddingStore, tmp_path: Path) -> None:
    """Without safetensors to copy the layout from, there is one file with each weight once."""
    folder = own("qwen3_4b")
    content = {name: tensor for (_, name), tensor in weights(folder).items()}
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    torch.save(content, folder / "pytorch_model.bin")
    policy = load_policy(folder, store=store, allow_pickle_weights=True)
    policy.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == content.keys()
    assert all(saved[name].equal(tensor) for name, tensor in content.items())
    policy.save(tmp_path / "exact", exact=True)
    assert load_file(tmp_path / "exact" / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    assert not list(tmp_path.glob("*/pytorch_model.bin"))[1:]


class TestRefusals:
    def refuse(self, policy: Policy, target: Path, message: str) -> None:
        with pytest.raises(EngineError, match=message) as caught:
            policy.save(target)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
        assert not target.exists()
        assert not list(target.parent.glob(f".{target.name}*"))

    @pytest.mark.parametrize("kind", ["qwen2_5_vl_7b", "nvila_8b", "qwen2_5_1_5b"])
    def test_a_source_that_is_gone(
        self, own: Callable[[str], Path], kind: str, store: EmbeddingStore, tmp_path: Path
    ) -> None:
        folder = own(kind)
        policy = load(folder, store)
        shutil.rmtree(folder)
        self.refuse(policy, tmp_path / "saved", r"own: can't be read any more .* restore that and start again")

    @pytest.mark.parametrize("name", ["README.md", "tokenizer.json"])
    def test_a_link_to_nothing(
        self, own: Callable[[str], Path], name: str, store: EmbeddingStore, tmp_path: Path
    ) -> None:
        folder = own("qwen3_4b")
        policy = load(folder, store)
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / "nothing")
        self.refuse(policy, tmp_path / "saved", rf"own: can't be read any more \(.*own/{name}: is a link")

    def test_damaged_weights(self, own: Callable[[str], Path], store: EmbeddingStore, tmp_path: Path) -> None:
        folder = own("qwen3_4b")
        policy = load(folder, store)
        (folder / "model-00002-of-00003.safetensors").unlink()
        self.refuse(policy, tmp_path / "saved", "model-00002-of-00003.safetensors: can't be read any more")
        (folder / INDEX).write_text("{}")
        self.refuse(policy, tmp_path / "saved", r"own: can't be read any more \(.*index.json: names no weight_map")
        (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}}))
        self.refuse(policy, tmp_path / "saved", r"names the file \.\./model\.safetensors; expected names of files")

    def test_another_model(self, folders: Path, store: EmbeddingStore, tmp_path: Path) -> None:
        policy = load(folders / "qwen2_5_7b", store)
        policy.source = folders / "qwen2_5_1_5b"
        self.refuse(policy, tmp_path / "saved", "no place for 1 weights of the model, first lm_head.weight")
        policy.source = folders / "qwen3_8b"
        self.refuse(policy, tmp_path / "saved", r"has shape \(384, 128\) and in the model \(384, 96\)")


def test_files_of_a_checkpoint(tmp_path: Path) -> None:
    for name in ("b/c", "a", ".git/x", "runs/1/x", ".attributes", "b/__pycache__/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def found(**options: Any) -> list[str]:
        return [path.as_posix() for path in checkpoint_files(tmp_path, **options)]

    assert found() == [".attributes", "a", "b/c", "runs/1/x"]
    assert found(outside=[tmp_path / "runs" / "2"]) == [".attributes", "a", "b/c"]
    assert found(outside=[tmp_path, tmp_path.parent, tmp_path / "none"]) == found()


def test_weights_of_several_parts_need_their_folders(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(EngineError, match="source/llm: can't be read any more"):
        write_copy(tmp_path / "source", tmp_path / "target", {"llm": {"a": torch.ones(1)}}, exact=False, outside=())
