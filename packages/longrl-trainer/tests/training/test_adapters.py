"""LoRA: only adapters are trained, they are the same merged and apart, and wrong requests are one line."""

import json
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from longrl_trainer.config.sections import LoraSection
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.grpo import create_update, train_grpo
from longrl_trainer.objectives.base import build_objective
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.rl.groups import judge_groups
from longrl_trainer.runs.export import export_model
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.sft import train_sft
from longrl_trainer.training.adapters import LoraAdapters
from longrl_trainer.training.opening import create_optimizer, open_policy, open_training_policy
from longrl_trainer.training.ranks import ALONE
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.agreement import disturb_weights
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import TINY_FAMILIES, build_tiny

SEEING = ("qwen2_vl", "qwen2_5_omni", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
LORA = {"lora__rank": 4, "lora__alpha": 8}


class BreakError(Exception):
    """Stands for whatever ends a run."""


class Break(SilentProgress):
    """Ends the loop after some steps."""

    def __init__(self, after: int) -> None:
        self._left: int | None = None
        self._after = after

    @contextmanager
    def task(self, description, *, total, done=0):
        self._left = self._after if description in ("SFT", "GRPO") else None
        yield self

    def advance(self, amount=1, *, note=""):
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise BreakError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def logprobs(policy: Policy, world) -> torch.Tensor:
    """Of some tokens about every video."""
    config = world.sft(world.folder / "unused")
    questions = load_questions(config.data, policy, progress=SilentProgress()).kept[:4]
    branches = [Branch(token_ids=tuple(range(10, 22)))]
    with torch.no_grad():
        found = [
            score_branches(policy, build_question_prompt(policy, question, None), branches).logprobs[0]
            for question in questions
        ]
    return torch.cat(found).double()


@pytest.fixture(scope="module")
def trained(started, tmp_path_factory):
    """A finished SFT run with adapters; to be read."""
    config = started.sft(tmp_path_factory.mktemp("lora") / "run", learning_rate=1e-2, checkpoint_every_steps=1, **LORA)
    train_sft(config)
    return config


class TestWhatIsSaved:
    @pytest.mark.slow
    def test_it_is_the_same_merged_and_apart_here_and_in_peft(self, started, trained):
        base = open_policy(trained.model, "float32")
        merged = open_policy(trained.model.model_copy(update={"folder": trained.output / "model"}), "float32")
        apart = open_policy(trained.model, "float32")
        LoraAdapters(apart, trained.lora, seed=1).load(trained.output / "adapter")
        theirs = open_policy(trained.model, "float32")
        peft.PeftModel.from_pretrained(theirs.model, trained.output / "adapter")  # puts them into the model in place
        expected = logprobs(apart, started)
        assert (logprobs(merged, started) - expected).abs().max() <= 1e-5
        assert (logprobs(theirs, started) - expected).abs().max() <= 1e-5
        assert (logprobs(base, started) - expected).abs().max() > 1e-2
        plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(trained.model.folder)
        by_peft = peft.PeftModel.from_pretrained(plain, trained.output / "adapter").merge_and_unload().state_dict()
        for name, tensor in merged.model.state_dict().items():
            torch.testing.assert_close(by_peft[name], tensor, rtol=0, atol=1e-6)

    @pytest.mark.slow
    def test_nothing_but_adapted_layers_has_changed(self, trained):
        before, after = weights(trained.model.folder), weights(trained.output / "model")
        assert before.keys() == after.keys()
        changed = {name for name in before if not before[name].equal(after[name])}
        assert {name.split(".")[-2] for name in changed} == {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        }  # fmt: skip
        assert not any(name.startswith("visual") for name in changed)

    @pytest.mark.slow
    def test_a_checkpoint_holds_adapters_and_is_exported_as_a_model(self, started, trained, tmp_path):
        config = started.sft(tmp_path / "run", learning_rate=1e-2, checkpoint_every_steps=1, **LORA)
        with pytest.raises(BreakError):
            train_sft(config, progress=Break(after=3))
        folder = config.output / "checkpoints" / "step-000002"
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {
            "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
            "shard-00001-model-00001-of-00001.safetensors", "state.json",
        }  # fmt: skip
        assert export_model(config.output, tmp_path / "exported") == 2
        apart = open_policy(config.model, "float32")
        LoraAdapters(apart, config.lora, seed=1).load(folder / "adapter")
        apart.save(tmp_path / "saved")
        for path in (tmp_path / "saved").iterdir():
            assert (tmp_path / "exported" / path.name).read_bytes() == path.read_bytes(), path.name

        train_sft(config)
        for part in ("model", "adapter"):
            for path in (trained.output / part).iterdir():
                assert (config.output / part / path.name).read_bytes() == path.read_bytes(), path.name
        losses = [[line["loss"] for line in read_json_lines(run.output / "metrics.jsonl")] for run in (trained, config)]
        assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_is_the_same_merged_and_apart(family, tmp_path):
    build_tiny(family, tmp_path / "model")
    store = EmbeddingStore(tmp_path / "embeddings")
    policy = load_policy(tmp_path / "model", store=store)
    prompt, branches = policy.build_prompt("Which shape left first?", []), [Branch(token_ids=tuple(range(10, 30)))]
    names = policy.model.state_dict().keys()
    adapters = LoraAdapters(policy, LoraSection(rank=4, alpha=8, vision=family in SEEING), seed=0)
    layers = {name.rpartition(".")[2] for name in adapters.sampled_layers}
    expected_layers = {"q_proj", "k_proj", "v_proj", "o_proj"}
    if family != "qwen3_vl_moe":
        expected_layers |= {"gate_proj", "up_proj", "down_proj"}
    if family == "qwen3_5_moe":
        expected_layers |= {"shared_expert_gate"}
    if family.startswith("qwen3_5"):
        expected_layers |= {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"}
    assert layers == expected_layers
    disturb_weights(policy)
    policy.save(tmp_path / "merged")
    merged = load_policy(tmp_path / "merged", store=store)
    assert merged.model.state_dict().keys() == names
    base = load_policy(tmp_path / "model", store=store)
    with torch.no_grad():
        expected, found, before = (
            score_branches(each, prompt, branches).logprobs[0] for each in (policy, merged, base)
        )
        with adapters.turned_off():
            without = score_branches(policy, prompt, branches).logprobs[0]
    assert (found - expected).abs().max() <= 1e-5
    assert (before - expected).abs().max() > 1e-2
    assert without.equal(before)
    if family in SEEING:
        video = NoiseVideo(seed=1, frame_count=4)
        plan = policy.encoder.plan(video, range(4))
        rows = [torch.cat(list(each.encoder.encode_groups(video, plan))) for each in (policy, merged, base)]
        assert (rows[1] - rows[0]).abs().max() <= 1e-5
        assert (rows[2] - rows[0]).abs().max() > 1e-3


def test_the_base_stays_as_it_is_bit_for_bit(started, tmp_path):
    config = started.sft(tmp_path / "run", learning_rate=1e-2, epochs=1, lora__vision=True, dtype="bfloat16", **LORA)
    policy = open_policy(config.model, "bfloat16")
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    train_sft(config, policy)
    after = {name.replace(".base_layer.", "."): tensor for name, tensor in policy.model.state_dict().items()}
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    learned = {name for name, tensor in after.items() if ".lora_B." in name and tensor.any()}
    assert {".visual." in name for name in learned} == {True, False}
    assert len(learned) * 2 == sum(name not in before for name in after)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert all(line["frames_encoded"] > 0 for line in lines)


@pytest.mark.slow
def test_dropout_is_repeated_with_the_step_and_off_elsewhere(started, tmp_path):
    losses = []
    for name, dropout in (("whole", 0.5), ("broken", 0.5), ("none", 0.0), ("recomputed", 0.5)):
        config = started.sft(
            tmp_path / name,
            learning_rate=1e-2,
            checkpoint_every_steps=1,
            lora__dropout=dropout,
            activation_checkpointing="recompute" if name == "recomputed" else "none",
            **LORA,
        )
        if name == "broken":
            with pytest.raises(BreakError):
                train_sft(config, progress=Break(after=2))
        train_sft(config)
        losses.append([line["loss"] for line in read_json_lines(config.output / "metrics.jsonl")])
    assert losses[0] == losses[1]
    assert losses[0][0] == losses[2][0]  # nothing to drop: B is zero
    assert losses[0][1:] != losses[2][1:]
    assert losses[3] == pytest.approx(losses[0], rel=1e-5)


class TestTheReference:
    @pytest.fixture
    def step(self, started, tmp_path):
        config = started.grpo(
            tmp_path / "run", dtype="float64", prompts_per_step=4, max_response_tokens=24, kl_coefficient=0.5, **LORA
        )
        policy = open_training_policy(config)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        questions = load_questions(config.data, policy, progress=SilentProgress()).kept[:4]
        prompts = [build_question_prompt(policy, question, None) for question in questions]
        engine = TransformersRolloutEngine(policy)
        from longrl_trainer.rl.sampling import draw_responses

        drawn = draw_responses(engine, prompts, config, step=0)
        groups = judge_groups(
            list(zip(questions, prompts, drawn, strict=True)),
            rewards=load_rewards(config.rewards),
            objective=build_objective(config),
        )
        return config, policy, groups

    def measure(self, config, policy, groups, reference=None):
        optimizer = create_optimizer(policy, config)
        update = create_update(config, policy, optimizer, ALONE)
        assert update.reference is policy  # nothing is loaded twice
        if reference is not None:
            object.__setattr__(update, "reference", reference)
        statistics = update.run(groups, StepMedia(policy, []), 0.0)
        moments = {name: value for name, value in optimizer.state_tensors().items() if "exp_avg/" in name}
        return statistics.metrics()["kl"], moments

    @pytest.mark.slow
    def test_it_is_the_base(self, step):
        config, policy, groups = step
        kl, moments = self.measure(config, policy, groups)
        kl_of_loaded, of_loaded = self.measure(config, policy, groups, reference=open_policy(config.model, "float64"))
        assert kl == pytest.approx(kl_of_loaded, abs=1e-9)
        assert kl > 1e-3
        assert moments.keys() == of_loaded.keys()
        assert moments
        for name, value in of_loaded.items():
            torch.testing.assert_close(moments[name], value, rtol=0, atol=1e-9)

    @pytest.mark.slow
    def test_adapters_left_on_are_noticed(self, step, monkeypatch):
        config, policy, groups = step
        monkeypatch.setattr(LoraAdapters, "turned_off", lambda self: nullcontext())
        kl, _ = self.measure(config, policy, groups)
        assert kl == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_grpo_with_adapters_continues_exactly(started, tmp_path):
    options = {"steps": 4, "checkpoint_every_steps": 1, "learning_rate": 1e-2, "kl_coefficient": 0.1, **LORA}
    whole = started.grpo(tmp_path / "whole", max_response_tokens=24, **options)
    train_grpo(whole)
    broken = started.grpo(tmp_path / "broken", max_response_tokens=24, **options)
    with pytest.raises(BreakError):
        train_grpo(broken, progress=Break(after=3))
    train_grpo(broken)
    lines = [read_json_lines(config.output / "metrics.jsonl") for config in (whole, broken)]
    for line in (*lines[0], *lines[1]):
        for name in PASSING:
            line.pop(name, None)
    assert lines[0] == lines[1]
    assert any(line["kl"] for line in lines[0])


class TestRefusals:
    def refuse(self, message, start, *arguments, **options):
        with pytest.raises((TrainerUsageError, TrainerError), match=message) as caught:
            start(*arguments, **options)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lora__rank": 0}, r"lora.rank: got 0, expected: greater than or equal to 1"),
            ({"lora__rank": 4}, r"lora.alpha: missing"),
            ({"lora__dropout": 0.1}, r"lora.rank: missing; lora.dropout has no meaning without it"),
            ({**LORA, "lora__targets": []}, r"lora.targets: got \[\]"),
            ({**LORA, "train_vision": "all"}, r'train_vision="all" with lora.rank=4: expected "frozen"'),
        ],
    )
    def test_settings_that_contradict_each_other(self, world, tmp_path, changes, message):
        self.refuse(message, world.sft, tmp_path, **changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({**LORA, "lora__dropout": 0.1}, r"lora.dropout=0.1: expected 0 in grpo"),
            ({"sampler__lora_sync": "adapter"}, r'sampler.lora_sync="adapter": expected with lora.rank'),
            ({**LORA, "sampler__lora_sync": "adapter"}, r'expected with sampler.engine="vllm"'),
            (
                {"lora__rank": 513, "lora__alpha": 1, "sampler": {"engine": "vllm", "lora_sync": "adapter"}},
                r"lora.rank=513: vLLM takes adapters up to rank 512",
            ),
        ],
    )
    def test_settings_that_the_sampler_cannot_follow(self, world, tmp_path, changes, message):
        self.refuse(message, world.grpo, tmp_path, **changes)

    def test_in_bfloat16_adapters_come_alone_by_default(self, world, tmp_path):
        vllm = {"engine": "vllm"}
        assert world.grpo(tmp_path, **LORA, sampler=vllm, dtype="bfloat16").sampler.takes_adapters("bfloat16")
        assert not world.grpo(tmp_path, **LORA, sampler=vllm).sampler.takes_adapters("float32")
        merged = world.grpo(tmp_path, **LORA, sampler=vllm | {"lora_sync": "merged"}, dtype="bfloat16").sampler
        assert not merged.takes_adapters("bfloat16")
        options = {"lora__rank": 513, "lora__alpha": 1, "sampler": vllm, "dtype": "bfloat16"}
        self.refuse(r"lora.rank=513: vLLM takes adapters up to rank 512", world.grpo, tmp_path, **options)

    @pytest.mark.parametrize("target", ["q_porj", "self_attn.q_porj", "lm_head", "embed_tokens", "down_proj.weight"])
    def test_unknown_targets_before_anything_is_loaded(self, world, tmp_path, monkeypatch, target):
        config = world.sft(tmp_path / "run", lora__targets=["v_proj", target], **LORA)
        monkeypatch.setattr("longrl_trainer.sft.open_training_policy", lambda *_, **__: pytest.fail("loaded"))
        self.refuse(rf"lora.targets: '{target}' matches no linear layer .* nearest is '", train_sft, config)
        assert not config.output.exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lora__targets": ["layers.7.self_attn.q_proj"]}, r"nearest is 'layers.[01].self_attn.q_proj'"),
            ({"lora__targets": ["attn.qkv"]}, r"'attn.qkv' matches no linear layer"),
            ({"lora__targets": ["q_proj"], "lora__vision": True}, r"match nothing in the vision; add one of .*qkv"),
        ],
    )
    def test_targets_that_only_the_model_shows(self, world, changes, message):
        config = world.sft(world.folder / "unused", **LORA, **changes)
        self.refuse(message, LoraAdapters, open_policy(config.model, "float32"), config.lora, seed=0)

    @pytest.mark.parametrize("family", ["vila", "qwen2"])
    def test_vision_that_is_no_part_of_the_language_models_class(self, tmp_path, family):
        build_tiny(family, tmp_path / "model")
        policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
        lora = LoraSection(rank=4, alpha=8, vision=True)
        self.refuse(rf"lora.vision=true: the vision of a model of type {family}", LoraAdapters, policy, lora, seed=0)

    def test_a_policy_that_has_adapters(self, world, tmp_path):
        config = world.sft(tmp_path / "run", epochs=1, **LORA)
        policy = open_policy(config.model, "float32")
        LoraAdapters(policy, config.lora, seed=0)
        self.refuse("the given policy has adapters already", train_sft, config, policy)

    @pytest.mark.slow
    def test_adapters_of_another_model_or_of_other_settings(self, started, trained, tmp_path):
        policy = open_policy(trained.model, "float32")
        adapters = LoraAdapters(policy, trained.lora.model_copy(update={"targets": ("q_proj",)}), seed=0)
        self.refuse(
            r"proj.lora_A.weight has shape .*, expected None; .* another model",
            adapters.load,
            trained.output / "adapter",
        )
        adapters = LoraAdapters(
            open_policy(trained.model, "float32"), trained.lora.model_copy(update={"rank": 8}), seed=0
        )
        self.refuse(r"adapters with r=4, expected 8; they belong to other", adapters.load, trained.output / "adapter")
        self.refuse(r"none", adapters.load, tmp_path / "none")

        copied = tmp_path / "adapter"
        shutil.copytree(trained.output / "adapter", copied)
        adapters = LoraAdapters(open_policy(trained.model, "float32"), trained.lora, seed=0)
        path = copied / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({name: tensor[:, :1].contiguous() for name, tensor in tensors.items()}, path)
        self.refuse(r"has shape .*, expected .* another model", adapters.load, copied)
        path.write_bytes(path.read_bytes()[:100])
        self.refuse(r"can't be read", adapters.load, copied)
        settings = json.loads((copied / "adapter_config.json").read_text())
        (copied / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
        self.refuse(r"adapters with use_dora=True, expected False", adapters.load, copied)

    @pytest.mark.slow
    def test_a_run_that_began_with_other_adapters_or_none(self, started, trained):
        for changes, message in (
            ({**LORA, "lora__rank": 2}, r"contains another run: settings.lora.rank was 4 and is now 2"),
            ({}, r"contains another run: settings.lora.alpha was 8 and is now null"),
        ):
            config = started.sft(trained.output, learning_rate=1e-2, checkpoint_every_steps=1, **changes)
            self.refuse(message, train_sft, config)
