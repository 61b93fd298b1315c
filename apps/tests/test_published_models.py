"""Every published kind of model goes through encode, sft, grpo, export and evaluate, with vLLM, as a user types it.

The videos and pictures have one frame to 256, and lie, stand or are tiny. In both GRPO steps, before and after an
update, sampler and trainer may disagree by 1e-5; the settings for sampling that checkpoints carry count for nothing.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from longrl.cli import main
from longvideo_reason_data.records.medium import MediumKind, RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.tiny.published import PUBLISHED_KINDS, write_published

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
SHAPES = {"lying": (54, 96), "standing": (96, 54), "tiny": (14, 20)}
FILMS = {"lying": (1, 7, 256), "standing": (1, 2, 64), "tiny": (1, 2, 7, 256)}
UNFIT = {"thin": (8, 4, 900)}
"""For Qwen's models; VILA's take it."""
WITHOUT_PICTURES = ("nvila_8b",)
"""They would be cut into tiles of several scales, which the engine doesn't do."""
WITH_EXPERTS = ("qwen3_vl_30b_a3b",)
"""Two experts that come next to each other by less than rounding may be picked differently for a token or two."""
WITH_STATES = ("qwen3_5_27b",)
"""Layers that vLLM computes in bfloat16 only, on CPUs."""
READERS = ("qwen2_5_1_5b", "qwen2_5_7b", "qwen3_4b", "qwen3_8b")
QUICK = ("qwen2_5_vl_3b", "nvila_8b", "qwen3_4b")
RECIPE = """\
output = "{output}"
learning_rate = 1e-3
checkpoint_every_steps = 2
{settings}

[model]
folder = "{model}"
store = "{store}"

[data]
dataset = "{dataset}"
split = "train_rl"
num_frames = 256
"""
SFT = "rows_per_step = {rows}\nepochs = 1"
GRPO = """\
steps = 2
prompts_per_step = {num_prompts}
group_size = 2
max_response_tokens = 8
max_logprob_gap = 1e-5
rewards = {{ vowels = 1.0 }}
sampler = {{ engine = "{engine}" }}
"""
REWARD = '''\
from longrl_trainer.rewards.base import RewardResult, RewardStatus


class VowelReward:
    """A reward that any two responses of a random model differ in."""

    def score(self, response_text, *, finished, record):
        vowels = sum(response_text.count(letter) for letter in "aeiou")
        return RewardResult(value=vowels / (1 + len(response_text)), status=RewardStatus.OK)
'''


def make_record(folder: Path, question_id: str, paths: Sequence[str], number: int) -> QuestionRecord:
    kinds = [MediumKind.IMAGE if path.endswith(".png") else MediumKind.VIDEO for path in paths]
    return QuestionRecord(
        question_id=question_id,
        media=tuple(
            RecordMedium(
                kind=kind,
                path=path,
                digest=hashlib.sha256((folder / path).read_bytes()).hexdigest(),
                duration_seconds=1.0 if kind is MediumKind.VIDEO else None,
            )
            for path, kind in zip(paths, kinds, strict=True)
        ),
        split=Split.TRAIN_RL,
        skill=Skill.TEMPORAL,
        question="Which colour is seen first?",
        options=("red", "green", "blue", "white"),
        answer="ABCD"[number % 4],
        evidence=(),
        reasoning="It is seen at the start.",
        source="test",
        license="Apache-2.0",
    )


def noise(*seed: int, height: int, width: int) -> np.ndarray:
    shade = np.random.default_rng(seed).integers(0, 256, 3, np.uint8)
    return np.broadcast_to(shade, (height, width, 3)).copy()


def write_film(path: Path, num_frames: int, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            picture = noise(num_frames, index, height=height, width=width)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One question about each film and picture, one about both, and one about a film that Qwen's models can't take."""
    folder = tmp_path_factory.mktemp("seen")
    films = {f"{shape}-{count}": (count, *SHAPES[shape]) for shape, counts in FILMS.items() for count in counts} | UNFIT
    about: dict[str, list[str]] = {}
    for name, shape in films.items():
        about[name] = [f"videos/{name}.mp4"]
        write_film(folder / about[name][0], *shape)
    for number, (name, (height, width)) in enumerate(SHAPES.items()):
        about[f"picture-{name}"] = [f"pictures/{name}.png"]
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(noise(number, height=height, width=width)).save(folder / "pictures" / f"{name}.png")
    about["both"] = ["pictures/tiny.png", "videos/tiny-7.mp4", "videos/standing-2.mp4"]
    records = [make_record(folder, name, paths, number) for number, (name, paths) in enumerate(about.items())]
    write_records(folder / "records.parquet", records)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that come from texts."""
    folder = tmp_path_factory.mktemp("read")
    for number in range(3):
        (folder / f"{number}.txt").write_text("word " * 10**number)
    records = [make_record(folder, str(number), [f"{number}.txt"], number) for number in range(3)]
    write_records(folder / "records.parquet", records)
    return folder


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a reward."""
    place = tmp_path / "site"
    information = place / "vowel_reward-1.0.dist-info"
    information.mkdir(parents=True)
    (place / "vowel_reward.py").write_text(REWARD)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vowel-reward\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[longrl_trainer.rewards]\nvowels = vowel_reward:VowelReward\n")
    monkeypatch.syspath_prepend(place)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


class Stages:
    """The commands on one model and one dataset, and what each left on disk."""

    def __init__(self, kind: str, dataset: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.kind = kind
        self.model, self.store, self.dataset, self.folder = folder / "model", folder / "store", dataset, folder
        self.engine = "transformers" if kind in WITH_STATES else "vllm"
        self._capsys = capsys
        write_published(kind, self.model)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        found = main([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        assert found == code, said.err
        return said.out + said.err

    def train(self, stage: str, settings: str, start: Path) -> dict[str, Any]:
        output = self.folder / stage
        values = {"output": output, "model": start, "store": self.store, "dataset": self.dataset}
        recipe = self.folder / f"{stage}.toml"
        recipe.write_text(RECIPE.format(settings=settings, **values))
        self.run(stage, recipe)
        return json.loads((output / "result.json").read_text())

    def evaluate(self, model: Path) -> dict[str, Any]:
        output = self.folder / "accuracy.json"
        places = ("--model.folder", model, "--model.store", self.store, "--data.dataset", self.dataset)
        data = ("--data.split", "train_rl", "--data.num-frames", "256", "--max-response-tokens", "8")
        data = (*data, "--sampler.engine", self.engine)
        self.run("evaluate", *places, *data, "--output", output)
        return json.loads(output.read_text())

    def go_through(self, counts: Mapping[str, Any]) -> None:
        """All but encoding; every stage keeps the same questions, and the layout stays the published one."""
        num_kept = counts["kept"]
        done = self.train("sft", SFT.format(rows=-(-num_kept // 3)), self.model)
        assert (done["questions"], done["num_steps"]) == (counts, 3)
        self.check_layout(self.folder / "sft" / "model", before=self.model)
        self.run("export", self.folder / "sft", "--step", "2", "--output", self.folder / "early")
        self.check_layout(self.folder / "early", before=self.model)

        grpo = GRPO.format(num_prompts=num_kept, engine=self.engine)
        assert self.train("grpo", grpo, self.folder / "sft" / "model")["questions"] == counts
        steps = [json.loads(line) for line in (self.folder / "grpo" / "metrics.jsonl").read_text().splitlines()]
        for step in steps:
            assert step["prompts_refused"] == {}
            assert step["groups"] == num_kept
            assert step["gradient_norm"] > 0
            assert step["logprob_gap"]["mean_abs"] <= 1e-5
            most = 1e-4 if self.kind in WITH_STATES else 1e-5  # these are computed in chunks, or token by token
            assert step["logprob_gap"]["max_abs"] <= most or self.kind in WITH_EXPERTS

        self.run("export", self.folder / "grpo", "--output", self.folder / "exported")
        self.check_layout(self.folder / "exported", before=self.folder / "sft" / "model")
        assert contents(self.folder / "exported") == contents(self.folder / "grpo" / "model")
        check_reading(self.folder / "exported", EmbeddingStore(self.store))
        found = self.evaluate(self.folder / "exported")
        assert (found["questions"], found["count"], found["prompts_refused"]) == (counts, num_kept, {})

    def check_layout(self, folder: Path, *, before: Path) -> None:
        old, new = contents(before), contents(folder)
        assert old.keys() == new.keys()
        assert {name for name in old if old[name] != new[name]} <= {name for name in old if name.endswith("tensors")}
        first, then = weights(self.model), weights(folder)
        assert {name: tensor.dtype for name, tensor in first.items()} == {n: tensor.dtype for n, tensor in then.items()}
        assert any(not tensor.equal(then[name]) for name, tensor in weights(before).items())


@torch.no_grad()
def check_reading(folder: Path, store: EmbeddingStore) -> None:
    """Transformers loads all of it and nothing else, and gives the logits of the policy."""
    language = folder / "llm" if (folder / "llm").is_dir() else folder
    config = json.loads((language / "config.json").read_text())
    reader = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    if "thinker_config" in config:
        reader = Qwen2_5OmniThinkerForConditionalGeneration
    model, report = reader.from_pretrained(language, dtype=torch.float32, output_loading_info=True)
    speaking = {name for name in report["unexpected_keys"] if name.startswith(("talker.", "token2wav."))}
    assert bool(speaking) == ("thinker_config" in config)
    assert not any(set(names) - speaking for names in report.values()), report
    policy = load_policy(folder, store=store)
    tokens = torch.arange(3, 43)
    positions = torch.arange(len(tokens)).expand(policy.build_prompt("Why?", []).positions.shape[0], -1)
    hidden = policy.hidden_states(policy.embed_tokens(tokens), positions)
    torch.testing.assert_close(model(tokens[None]).logits[0], policy.language_model_head(hidden), atol=1e-4, rtol=1e-4)


def kinds(chosen: Sequence[str]) -> list[Any]:
    return [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.long) for kind in chosen]


@pytest.mark.slow
@pytest.mark.usefixtures("reward")
@pytest.mark.parametrize("kind", kinds([kind for kind in PUBLISHED_KINDS if kind not in READERS]))
def test_a_model_that_sees(kind: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(kind, dataset, tmp_path, capsys)
    unfit = 0 if "vila" in kind else len(UNFIT)
    num_films = sum(map(len, FILMS.values())) + 1 - unfit
    encode = ("encode", dataset / "videos", "--model", stages.model, "--store", stages.store, "--num-frames", "256")
    said = stages.run(*encode, code=unfit)
    assert f"{num_films} videos, {num_films} newly encoded" in said
    assert ("thin.mp4: frames of 4×900: one side is more than 200 times the other" in said) == bool(unfit)
    with_pictures = len(SHAPES) + 1
    num_kept = num_films + (0 if kind in WITHOUT_PICTURES else with_pictures)
    num_dropped = num_films + with_pictures + unfit - num_kept
    dropped = {"unfit_medium": num_dropped} if num_dropped else {}
    stages.go_through({"input": num_kept + num_dropped, "kept": num_kept, "dropped": dropped})
    assert f"{num_films} videos, 0 newly encoded" in stages.run(*encode, code=unfit)


@pytest.mark.usefixtures("reward")
@pytest.mark.parametrize("kind", kinds(READERS))
def test_a_model_that_reads(
    kind: str, texts: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = Stages(kind, texts, tmp_path, capsys)
    said = stages.run("encode", dataset / "videos", "--model", stages.model, "--store", stages.store, code=2)
    assert len(said.strip().splitlines()) == 1
    assert "a model of type qwen" in said
    assert "no video; set another model folder" in said
    stages.go_through({"input": 3, "kept": 3, "dropped": {}})
