"""Training on several ranks is that of one: for every division of data × sequence, with whole and with sharded weights.

A few steps of SFT and GRPO, on the trainer's own parts, from the same groups: the losses, the gradients of the first
step and the weights at the end equal those of a single process. All cases run on four ranks that are started once.
Faults known from other systems are injected into the running code; each is far beyond the tolerance.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from longrl_trainer.config.sections import ModelSection, ParallelSection
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.objectives.base import Objective, build_objective
from longrl_trainer.questions.question import Question
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.registry import ResponseScore
from longrl_trainer.rl.groups import RolloutGroup, compare_groups
from longrl_trainer.rl.update import PolicyUpdate
from longrl_trainer.sft import take_gradients
from longrl_trainer.training import scoring as scoring_module
from longrl_trainer.training.adapters import LoraAdapters
from longrl_trainer.training.division import divide_by_cost
from longrl_trainer.training.opening import create_optimizer, save_memory
from longrl_trainer.training.ranks import ALONE, Ranks
from longrl_trainer.training.scoring import RowScoring
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split
from mrsp_engine import sharding
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.rollout.base import Rollout, language_weights
from mrsp_engine.row_scorer import LOGIT_BYTES, RowScorer
from mrsp_engine.rows import PromptGroup
from mrsp_engine.testing.fixtures import NoiseVideo, RankPool, use_exact_norms
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.language import LanguageSizes

NUM_RANKS = 4
NUM_STEPS = 2
SIZES = LanguageSizes(
    hidden_size=128, num_layers=2, num_heads=4, num_key_value_heads=2, intermediate_size=32, vocabulary_size=300
)
TIED, UNTIED, SEEING, EXPERTS, HYBRID = "qwen3", "qwen2", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5"
TOLERANCES = {
    "float64": {"loss": 1e-9, "gradient": 1e-9, "weight": 1e-5},
    "float32": {"loss": 1e-6, "gradient": 1e-5, "weight": 1e-5},
}
SECONDS_PER_CASE = 120.0

Stage = Literal["sft", "grpo", "grpo with a reference"]
Data = Literal["uneven", "one group", "nothing to learn", "videos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCase:
    """What is trained, and on which ranks."""

    stage: Stage
    data: Data = "uneven"
    family: str = UNTIED
    sharding: Literal["none", "fsdp2", "zero2", "zero3"] = "fsdp2"
    num_ranks: int = NUM_RANKS
    sequence_ranks: int = 1
    shard_ranks: int | None = None
    shares_prompt: bool = True
    row_tokens: int | None = None
    has_adapters: bool = False
    activations: Literal["none", "recompute", "offload"] = "none"
    dtype: Literal["float64", "float32"] = "float64"
    num_steps: int = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    objective: str = "as it is"
    logit_bytes: int = LOGIT_BYTES["cpu"]

    @property
    def alone(self) -> "TrainingCase":
        """The same training by one process."""
        return TrainingCase(
            stage=self.stage,
            data=self.data,
            family=self.family,
            sharding="none",
            num_ranks=1,
            has_adapters=self.has_adapters,
            dtype=self.dtype,
            num_steps=self.num_steps,
            objective=self.objective,
        )

    def __str__(self) -> str:
        parallel = f"{self.num_ranks // self.sequence_ranks} x {self.sequence_ranks} ranks"
        adapters = ", adapters" if self.has_adapters else ""
        objective = "" if self.objective == "as it is" else f", {self.objective}"
        return f"{self.stage}, {self.data}, {self.family}, {parallel}, {self.sharding}{adapters}{objective}"


OBJECTIVE_SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gspo with an entropy bonus": {"objective": "gspo", "clip_high": 0.5, "entropy_coefficient": 0.1},
    "reinforce++ with weights by response": {
        "objective": "reinforce_plus_plus",
        "sampler_correction": "sequence_truncate",
        "sampler_correction_cap": 1e9,
        "updates_per_batch": 2,
    },
    "gdpo and sapo with an exact divergence": {
        "objective": "sapo",
        "advantage": "gdpo",
        "kl_importance": True,
        "sampler_correction": "token_truncate",
        "updates_per_batch": 2,
    },
    "cispo and a constant": {"objective": "cispo", "clip_high": 0.001, "aggregation": "constant"},
}
"""Settings of objectives in which ranks could differ: sums over responses, over the step, and over the vocabulary."""

CASES = [
    *(
        TrainingCase(stage=stage, sharding=kind, sequence_ranks=sequence_ranks)
        for stage in ("sft", "grpo")
        for kind in ("none", "fsdp2")
        for sequence_ranks in (1, 2, 4)
    ),
    *(TrainingCase(stage="sft", num_ranks=2, sequence_ranks=ranks, family=TIED) for ranks in (1, 2)),
    TrainingCase(stage="grpo", num_ranks=2, sharding="none"),
    TrainingCase(stage="sft", data="one group"),
    TrainingCase(stage="grpo with a reference", data="one group", sequence_ranks=2),
    TrainingCase(stage="grpo", data="nothing to learn"),
    TrainingCase(stage="grpo with a reference", data="nothing to learn", family=TIED),
    TrainingCase(stage="sft", data="videos", family=SEEING, sequence_ranks=2),
    TrainingCase(stage="grpo", data="videos", family=SEEING, sequence_ranks=4, activations="offload"),
    TrainingCase(stage="grpo with a reference", has_adapters=True, family=TIED, sequence_ranks=2),
    *(
        TrainingCase(
            stage="grpo with a reference" if "++" in name or "divergence" in name else "grpo",
            sequence_ranks=sequence_ranks,
            num_ranks=num_ranks,
            objective=name,
        )
        for name in OBJECTIVE_SETTINGS
        if name != "as it is"
        for num_ranks, sequence_ranks in (((2, 2), (4, 2)) if "gspo" in name else ((4, 2),))
    ),
    TrainingCase(stage="grpo with a reference", data="one group", objective="reinforce++ with weights by response"),
    TrainingCase(stage="sft", has_adapters=True, sharding="none"),
    TrainingCase(stage="sft", shares_prompt=False, activations="recompute"),
    TrainingCase(stage="sft", row_tokens=90, shard_ranks=2),
    TrainingCase(stage="grpo with a reference", offload="all", sequence_ranks=2),
    TrainingCase(stage="sft", family=EXPERTS),
    TrainingCase(stage="sft", data="one group", family=EXPERTS, shard_ranks=2),
    TrainingCase(stage="grpo", data="videos", family=EXPERTS, sequence_ranks=2),
    TrainingCase(stage="grpo", data="videos", family=HYBRID, sequence_ranks=4),
    TrainingCase(stage="sft", family=HYBRID, sequence_ranks=2, has_adapters=True, activations="recompute"),
]
ZERO_CASES = [
    *(
        replace(case, sharding=kind, dtype="float32")
        for kind in ("zero2", "zero3")
        for case in (
            TrainingCase(stage="sft", num_ranks=2, num_steps=10),
            TrainingCase(stage="sft", family=TIED, sequence_ranks=2),
            TrainingCase(stage="sft", data="one group", family=TIED),
            TrainingCase(stage="sft", num_ranks=2, shares_prompt=False, activations="recompute"),
            TrainingCase(stage="sft", data="videos", family=SEEING, num_ranks=2, sequence_ranks=2),
            TrainingCase(stage="sft", has_adapters=True, num_ranks=2, family=TIED),
            TrainingCase(stage="grpo", num_steps=10),
            TrainingCase(stage="grpo", data="nothing to learn", num_ranks=2),
            TrainingCase(stage="grpo with a reference", data="one group", num_ranks=2, family=TIED),
            TrainingCase(stage="grpo with a reference", has_adapters=True, sequence_ranks=2, num_steps=10),
            TrainingCase(stage="sft", num_ranks=2, family=TIED, logit_bytes=9000),
            TrainingCase(stage="sft", num_ranks=2, offload="optimizer"),
            TrainingCase(stage="sft", num_ranks=2, family=HYBRID, sequence_ranks=2),
        )
    ),
    TrainingCase(stage="grpo", num_ranks=2, offload="all", sharding="zero3", dtype="float32", num_steps=10),
]


def build(root: Path) -> None:
    for family in (TIED, UNTIED, SEEING, EXPERTS, HYBRID):
        build_tiny(family, root / family, sizes=SIZES)


def open_exact(root: str, family: str, dtype: str = "float64") -> Policy:
    policy = load_policy(
        Path(root) / family, dtype=getattr(torch, dtype), store=EmbeddingStore(Path(root) / "embeddings")
    )
    use_exact_norms(policy.model)
    policy.freeze_vision()
    return policy


def config_of(root: str, case: TrainingCase) -> GrpoConfig:
    return GrpoConfig.model_validate(
        {
            "output": Path(root) / "run",
            "model": ModelSection(folder=Path(root) / case.family),
            "data": {"dataset": Path(root), "split": "train_rl", "num_frames": 4},
            "steps": case.num_steps,
            "dtype": case.dtype,
            # AdamW makes whole steps of the rounding of gradients that are zero, which those of the keys' biases are.
            "learning_rate": 1e-3 if case.dtype == "float64" else 1e-4,
            "weight_decay": 0.1,
            "share_prompt": case.shares_prompt,
            "kl_coefficient": 0.1 if case.stage == "grpo with a reference" else 0.0,
            "max_logprob_gap": 1e9,
            "updates_per_batch": 2 if case.stage == "grpo" else 1,
            "parallel": ParallelSection(row_tokens=case.row_tokens),
            "activation_checkpointing": case.activations,
            "lora": {"rank": 4, "alpha": 8} if case.has_adapters else {},
            "sharding": {"kind": case.sharding, "shard_ranks": case.shard_ranks, "offload": case.offload},
        }
        | OBJECTIVE_SETTINGS[case.objective]
    )


def prompt_groups(policy: Policy, data: Data, step: int) -> list[PromptGroup]:
    """Groups of very different lengths; "videos" has some with a medium."""
    generator = torch.Generator().manual_seed(step)
    sizes = [(1, (30, 41, 7)), (12, (5, 9, 2)), (3, (17, 1, 23)), (1, (2, 3, 1)), (5, (8, 8, 8))]
    groups: list[PromptGroup] = []
    for number, (num_words, lengths) in enumerate(sizes if data != "one group" else sizes[:1]):
        media = []
        if data == "videos" and number % 2 == 0:
            media = [policy.encode_video(NoiseVideo(seed=number, frame_count=8), range(0, 8, 2))]
        branches = [
            Branch(token_ids=tuple(torch.randint(0, 250, (length,), generator=generator).tolist()))
            for length in lengths
        ]
        groups.append(PromptGroup(prompt=policy.build_prompt("why " * num_words, media), branches=branches))
    return groups


def rollout_groups(policy: Policy, data: Data, step: int, objective: Objective) -> list[RolloutGroup]:
    """The same as judged responses; one group has no spread, and one response could not be judged."""
    record = QuestionRecord.model_construct(question_id="q", split=Split.TRAIN_RL, skill=next(iter(Skill)))
    found: list[RolloutGroup] = []
    for number, group in enumerate(prompt_groups(policy, data, step)):
        is_even = number == 3 or data == "nothing to learn"
        answers = [0.5, 0.5, 0.5] if is_even else [1.0, 0.0, None if number == 1 else 0.25]
        formats = [1.0, 1.0, 1.0] if is_even else [0.0, 1.0, 0.0]
        found.append(
            RolloutGroup(
                question=Question(record=record, media=()),
                prompt=group.prompt,
                rollouts=tuple(
                    Rollout(
                        token_ids=branch.token_ids, logprobs=(-5.7,) * len(branch.token_ids), text="", finished=True
                    )
                    for branch in group.branches
                ),
                scores=tuple(
                    ResponseScore(
                        terms={
                            "answer": RewardResult(value=answer, status=RewardStatus.OK),
                            "format": RewardResult(value=form, status=RewardStatus.OK),
                        },
                        total=None if answer is None else answer + 0.5 * form,
                    )
                    for answer, form in zip(answers, formats, strict=True)
                ),
                advantages=(),
                weights=(1.0, 0.5),
            )
        )
    return compare_groups(found, objective)


def train(root: str, case: TrainingCase, ranks: Ranks) -> dict[str, Tensor]:
    """The losses of a few steps, the gradients of the first, and the weights at the end."""
    config, policy = config_of(root, case), open_exact(root, case.family, case.dtype)
    if case.has_adapters:
        LoraAdapters(policy, config.lora, seed=0)
    save_memory(policy, config, ranks)
    optimizer = create_optimizer(policy, config, ranks)
    scoring = RowScoring.of(config, policy, ranks, temperature=0.9)
    found: dict[str, Tensor] = {}
    step_of = optimizer.step

    def noting(learning_rate: float) -> float:
        for name, weight in policy.model.named_parameters():
            if weight.requires_grad and weight.grad is not None:
                found.setdefault(f"gradient {name}", whole_tensor(weight.grad).clone())
        norm = step_of(learning_rate)
        if policy.joint_passes is not None and not any(name.startswith("gradient") for name in found):
            # Of the first step's gradient a tenth is the first moment, as far as it isn't clipped.
            share = 0.1 * min(1.0, config.max_gradient_norm / (norm + 1e-6))
            for key, moment in optimizer.state_tensors().items():
                if key.startswith("exp_avg/"):
                    found[f"gradient {key.removeprefix('exp_avg/')}"] = whole_tensor(moment) / share
        return norm

    optimizer.step = noting  # type: ignore[method-assign]
    reference = None
    if case.stage == "grpo with a reference" and case.has_adapters:
        reference = policy
    elif case.stage == "grpo with a reference":
        reference = open_exact(root, case.family, case.dtype)
        reference.model.requires_grad_(False)
        for weight in reference.model.parameters():
            weight.mul_(1.1)  # so that there is a divergence from the first step on
        save_memory(reference, config, ranks)
    update = PolicyUpdate(
        policy=policy,
        optimizer=optimizer,
        objective=build_objective(config),
        scoring=scoring,
        reference=reference,
        num_updates=config.updates_per_batch,
        max_logprob_gap=config.logprob_gap_limit,
    )
    for step in range(case.num_steps):
        if case.stage == "sft":
            loss = take_gradients(policy, prompt_groups(policy, case.data, step), scoring)
            ranks.sum_gradients(policy)
            measured: dict[str, Any] = {"loss": loss, "norm": optimizer.step(config.learning_rate)}
        else:
            groups = rollout_groups(policy, case.data, step, update.objective)
            statistics = update.run(groups, StepMedia(policy, []), config.learning_rate)
            measured = statistics.metrics()
            measured |= {f"gap {name}": value for name, value in measured.pop("logprob_gap").items()}
        found |= {
            f"loss, {name} {step}": torch.tensor(value, dtype=torch.float64)
            for name, value in measured.items()
            if value is not None
        }
    for name, weight in policy.model.named_parameters():
        found[f"weight {name}"] = whole_tensor(weight.detach()).clone()
    return found


@functools.cache
def expected_of(root: str, case: TrainingCase) -> dict[str, Tensor]:
    return train(root, case, ALONE)


@functools.cache
def ranks_of(num_ranks: int) -> SequenceGroup | None:
    """The first ranks; every rank has to request the same numbers in the same order."""
    process_group = dist.new_group(list(range(num_ranks)))
    return SequenceGroup.of(process_group) if dist.get_rank() < num_ranks else None


def difference(root: str, values: dict[str, Any], fault: str | None = None) -> tuple[float, str]:
    """The largest difference of this rank from one process, in units of what is allowed, and where it is."""
    case = TrainingCase(**values)
    group = ranks_of(case.num_ranks)
    if group is None:
        return 0.0, ""
    expected = expected_of(root, case.alone)
    logits = patch.dict(LOGIT_BYTES, cpu=case.logit_bytes)  # several chunks where they are few
    with logits, FAULTS[fault][1]() if fault else nullcontext():
        actual = train(root, case, Ranks(group=group).share_rows(case.sequence_ranks))
    if actual.keys() != expected.keys():
        return float("inf"), ", ".join(sorted(actual.keys() ^ expected.keys()))
    gradients = [value.norm() for name, value in expected.items() if name.startswith("gradient")]
    norm = torch.stack(gradients or [torch.ones(())]).norm()
    worst = (0.0, "")
    for name, value in expected.items():
        kind = next(kind for kind in TOLERANCES[case.dtype] if name.startswith(kind))
        scale = norm if kind == "gradient" else value.abs().max().clamp(min=1.0)
        share = float((actual[name] - value).norm() / scale / TOLERANCES[case.dtype][kind])
        worst = worst if share <= worst[0] else (share if share == share else float("inf"), name)
    return worst


def count_passes(root: str, values: dict[str, Any]) -> int:
    """How often this rank runs the model in the first step, by the module that all training calls."""
    right, num_passes = RowScorer.forward, 0

    def counting(self: RowScorer, *arguments: Any, **settings: Any) -> Any:
        nonlocal num_passes
        num_passes += 1
        return right(self, *arguments, **settings)

    with patch.object(RowScorer, "forward", counting):
        difference(root, values)
    return num_passes


def train_coarsely(root: str) -> list[float]:
    """Losses of sharded and then of whole weights in bfloat16; checks the dtypes of what is kept and sampled."""
    assert isinstance(dist.group.WORLD, dist.ProcessGroup)
    ranks = Ranks(group=SequenceGroup.of(dist.group.WORLD))
    losses: list[float] = []
    for kind in ("fsdp2", "none"):
        config = config_of(root, TrainingCase(stage="sft", sharding=kind, family=TIED))
        policy = load_policy(Path(root) / TIED, dtype=torch.bfloat16, store=EmbeddingStore(Path(root) / "embeddings"))
        save_memory(policy, config, ranks)
        optimizer = create_optimizer(policy, config, ranks)
        scoring = RowScoring.of(config, policy, ranks)
        for step in range(NUM_STEPS):
            losses.append(take_gradients(policy, prompt_groups(policy, "uneven", step), scoring))
            ranks.sum_gradients(policy)
            optimizer.step(1e-3)
        kept = {weight.dtype for weight in policy.model.parameters()}
        assert kept == {torch.float32 if policy.is_sharded else torch.bfloat16}
        assert {weight.dtype for weight in optimizer.state_tensors().values()} == {torch.float32}
        assert {weight.dtype for _, weight in language_weights(policy)} == {policy.dtype} == {torch.bfloat16}
    return losses


def coarse_moments(root: str, kinds: list[str]) -> dict[str, float]:
    """Difference of the first moments of a bfloat16 model after one step of many rows from those under FSDP2."""
    assert isinstance(dist.group.WORLD, dist.ProcessGroup)
    ranks = Ranks(group=SequenceGroup.of(dist.group.WORLD))
    moments: dict[str, Tensor] = {}
    for kind in ("fsdp2", *kinds):
        config = config_of(root, TrainingCase(stage="sft", sharding=cast(Any, kind), family=TIED))
        policy = load_policy(Path(root) / TIED, dtype=torch.bfloat16, store=EmbeddingStore(Path(root) / "embeddings"))
        save_memory(policy, config, ranks)
        optimizer = create_optimizer(policy, config, ranks)
        groups = [group for step in range(6) for group in prompt_groups(policy, "uneven", step)]
        take_gradients(policy, groups, RowScoring.of(config, policy, ranks))
        optimizer.step(1e-3)
        state = optimizer.state_tensors()
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert {weight.dtype for _, weight in language_weights(policy)} == {policy.dtype} == {torch.bfloat16}
        found = [whole_tensor(tensor).flatten() for key, tensor in sorted(state.items()) if key.startswith("exp_avg/")]
        moments[kind] = torch.cat(found)
    return {kind: float((moments[kind] - moments["fsdp2"]).norm() / moments["fsdp2"].norm()) for kind in kinds}


def averaged() -> AbstractContextManager[object]:
    """Gradients are divided by the number of ranks, as is usual elsewhere."""
    return patch.object(sharding, "_sum_gradients", lambda module: None)


def split_group() -> AbstractContextManager[object]:
    """The first group is computed by two data ranks."""

    def wrong(costs: Any, num_shares: int) -> list[list[int]]:
        shares = divide_by_cost(costs, num_shares)
        place = next(place for place, share in enumerate(shares) if 0 not in share)
        shares[place].append(0)
        return shares

    return patch.object(scoring_module, "divide_by_cost", wrong)


def own_loss() -> AbstractContextManager[object]:
    """Every data rank takes the mean over its own tokens."""
    return patch(
        "longrl_trainer.sft.count_scored_tokens", lambda group: sum(len(b.token_ids) for b in group.branches) / 3
    )


def averaged_by_deepspeed() -> AbstractContextManager[object]:
    """DeepSpeed's division by the number of ranks is left in."""
    return patch(
        "longrl_trainer.training.zero.engine.ZeroPasses.backward", lambda self, loss: self.engine.backward(loss)
    )


def adapted_reference() -> AbstractContextManager[object]:
    """The adapters stay on while the reference is computed."""
    return patch.object(LoraAdapters, "turned_off", nullcontext)


SFT = TrainingCase(stage="sft")
FAULTS: dict[str, tuple[TrainingCase, Callable[[], AbstractContextManager[object]]]] = {
    "an averaging factor left in": (SFT, averaged),
    "a group on two data ranks": (SFT, split_group),
    "a loss weighted by each rank": (SFT, own_loss),
    "DeepSpeed's averaging": (SFT, averaged_by_deepspeed),
    "adapters left on in the reference": (
        TrainingCase(stage="grpo with a reference", has_adapters=True, family=TIED, sequence_ranks=2),
        adapted_reference,
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("training")
    build(root)
    return str(root)


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    with RankPool(NUM_RANKS, timeout_seconds=SECONDS_PER_CASE) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    """DeepSpeed's ranks are all ranks of the processes."""
    with RankPool(2, timeout_seconds=300) as two, RankPool(4, timeout_seconds=300) as four:
        yield {2: two, 4: four}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_train_like_one(case: TrainingCase, ranks: RankPool, root: str) -> None:
    worst, name = max(ranks.call(difference, root, asdict(case)))
    assert worst <= 1, f"{name} differs by {worst} times what is allowed"


@pytest.mark.long
@pytest.mark.parametrize("case", ZERO_CASES, ids=str)
def test_ranks_under_deepspeed_train_like_one(case: TrainingCase, pools: dict[int, RankPool], root: str) -> None:
    pytest.importorskip("deepspeed", reason="longrl-trainer[deepspeed] isn't installed")
    worst, name = max(pools[case.num_ranks].call(difference, root, asdict(case)))
    assert worst <= 1, f"{name} differs by {worst} times what is allowed"


@pytest.mark.long
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "DeepSpeed's averaging"])
def test_a_fault_is_seen(fault: str, ranks: RankPool, root: str) -> None:
    worst, _ = max(ranks.call(difference, root, asdict(FAULTS[fault][0]), fault))
    assert worst > 1e3


@pytest.mark.long
@pytest.mark.parametrize("fault", ["DeepSpeed's averaging", "a group on two data ranks"])
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_fault_under_deepspeed_is_seen(kind: Any, fault: str, pools: dict[int, RankPool], root: str) -> None:
    pytest.importorskip("deepspeed", reason="longrl-trainer[deepspeed] isn't installed")
    case = replace(ZERO_CASES[0], sharding=kind, num_steps=1)
    worst, _ = max(pools[case.num_ranks].call(difference, root, asdict(case), fault))
    assert worst > 1e3


@pytest.mark.long
def test_data_ranks_without_a_row_make_the_passes_of_the_others(ranks: RankPool, root: str) -> None:
    """One group on four data ranks: a rank that skipped an empty pass would leave the others waiting."""
    numbers = ranks.call(count_passes, root, asdict(TrainingCase(stage="sft", data="one group")))
    assert len(set(numbers)) == 1
    assert numbers[0] >= NUM_STEPS


@pytest.mark.long
def test_bfloat16_is_computed_while_float32_is_kept(ranks: RankPool, root: str) -> None:
    for losses in ranks.call(train_coarsely, root):
        assert losses[:NUM_STEPS] == pytest.approx(losses[NUM_STEPS:], abs=2e-3)
        assert losses[1] < losses[0]


@pytest.mark.long
def test_deepspeed_adds_up_the_gradients_of_bfloat16_in_float32(pools: dict[int, RankPool], root: str) -> None:
    """In bfloat16 the sum of as many rows would be wrong in the third digit."""
    pytest.importorskip("deepspeed", reason="longrl-trainer[deepspeed] isn't installed")
    for differences in pools[2].call(coarse_moments, root, ["zero2", "zero3"]):
        assert max(differences.values()) < 1e-5, differences
