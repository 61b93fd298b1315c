"""Loads the models of a stage: the policy in the trainer's precision, and the sampler that generates responses."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from longrl_trainer.config.sections import (
    DtypeName,
    ModelSection,
    OffloadName,
    SamplerSection,
    ShardingName,
)
from longrl_trainer.config.stages import GrpoConfig, SftConfig, TrainingConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.training.adapters import LoraAdapters
from longrl_trainer.training.division import RowCosts, choose_sequence_ranks
from longrl_trainer.training.joint_sampler import JointSampler
from longrl_trainer.training.optimizer import Optimizer, TrainingOptimizer
from longrl_trainer.training.ranks import ALONE, Ranks, choose_device
from longrl_trainer.training.zero.limits import refuse_unfit
from mrsp_engine.embeddings.limits import StoreLimits
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import GroupLengths, PackedLayout, pack_rows
from mrsp_engine.planner.memory import Sharding
from mrsp_engine.rollout.base import RolloutEngine
from mrsp_engine.row_scorer import row_scorer_of
from mrsp_engine.sharding import shard_policy

ZERO_STAGES: dict[ShardingName, Literal[2, 3]] = {"zero2": 2, "zero3": 3}
SPREAD: dict[ShardingName, Sharding] = {
    "none": "none",
    "fsdp2": "everything",
    "zero2": "optimizer",
    "zero3": "everything",
}
OFFLOADS: dict[ShardingName, tuple[OffloadName, ...]] = {
    "none": (),
    "fsdp2": ("all",),
    "zero2": ("optimizer",),
    "zero3": ("optimizer", "all"),
}
TORCH_DTYPES: dict[DtypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def open_policy(model: ModelSection, dtype: DtypeName, *, is_spread_later: bool = False) -> Policy:
    """Load the recipe's model; `is_spread_later` as in `mrsp_engine.families.load_policy`."""
    store = EmbeddingStore(model.store, StoreLimits(disk_bytes=model.store_bytes))
    return load_policy(
        model.folder,
        dtype=TORCH_DTYPES[dtype],
        store=store,
        device=choose_device(model),
        allow_pickle_weights=model.allow_pickle_weights,
        is_spread_later=is_spread_later,
    )


def open_training_policy(
    config: SftConfig | GrpoConfig, ranks: Ranks = ALONE, *, policy: Policy | None = None
) -> Policy:
    """The policy with which the recipe's training begins, with the media encoder frozen.

    Saved models always have the layout of the model that training started from.

    Args:
        config: The recipe, with the model to start from and the adapters to train instead of its weights.
        ranks: The processes of the run; if `save_memory` will spread the weights over them, each reads only its part.
        policy: The same model, if the caller has already loaded it.

    Raises:
        TrainerUsageError: The model can't get the adapters that the recipe asks for, or has some already, or is under
            DeepSpeed already.
    """
    folder = config.model.folder
    if policy is not None and policy.adapters is not None:
        raise TrainerUsageError(f"{folder}: the given policy has adapters already; load the model anew")
    if policy is not None and policy.joint_passes is not None:
        raise TrainerUsageError(f"{folder}: the given policy is under DeepSpeed already; load the model anew")
    policy = policy or open_policy(config.model, config.dtype, is_spread_later=is_spread_by_fsdp2(config, ranks))
    policy.source = folder
    if config.lora.rank is not None:
        LoraAdapters(policy, config.lora, seed=config.seed)
    policy.freeze_vision()
    return policy


def create_optimizer(policy: Policy, config: TrainingConfig, ranks: Ranks = ALONE) -> TrainingOptimizer:
    """The recipe's optimizer for the trained parameters of the policy; spreads them if DeepSpeed does."""
    kind = sharding_kind(config, ranks)
    if ranks.group is not None and kind in ZERO_STAGES:
        from longrl_trainer.training.zero.optimizer import ZeroOptimizer

        return ZeroOptimizer(policy, config, stage=ZERO_STAGES[kind], group=ranks.group)
    return Optimizer(
        policy.model,
        weight_decay=config.weight_decay,
        max_gradient_norm=config.max_gradient_norm,
        name=config.optimizer,
        muon_learning_rate_ratio=config.muon_learning_rate_ratio,
    )


def share_rows(config: TrainingConfig, policy: Policy, ranks: Ranks, groups: Sequence[GroupLengths]) -> Ranks:
    """Let the recipe's number of ranks share every row, or the best one for steps of such groups.

    All ranks call this together.
    """
    if ranks.group is None or not groups:
        return ranks
    chosen = config.parallel.sequence_ranks
    if chosen is None:
        costs = RowCosts.of(policy, config, sharding=SPREAD[sharding_kind(config, ranks)])
        rows = pack_rows([group.total for group in groups], config.parallel.row_tokens)
        layouts = [PackedLayout(tuple(groups[index] for index in row)) for row in rows]
        chosen = choose_sequence_ranks(costs, layouts, ranks.size)
    return ranks.share_rows(chosen)


def check_sharding(config: SftConfig | GrpoConfig, ranks: Ranks) -> None:
    """Refuse what can't be combined with sharded weights, before a model is loaded.

    Raises:
        TrainerUsageError: The recipe does.
    """
    kind = sharding_kind(config, ranks)
    if config.sharding.offload != "none":
        check_offload(config, kind)
    if kind == "none":
        return
    if config.optimizer == "muon":
        raise TrainerUsageError(
            'optimizer="muon" needs whole matrices, but weights are sharded over the processes; set '
            'sharding.kind="none", or optimizer="adamw"'
        )
    if kind in ZERO_STAGES:
        refuse_unfit(config, kind)
    shard_ranks = config.sharding.shard_ranks
    if shard_ranks is not None and ranks.size % shard_ranks:
        raise TrainerUsageError(f"sharding.shard_ranks={shard_ranks}: expected a divisor of the {ranks.size} processes")


def check_offload(config: SftConfig | GrpoConfig, kind: ShardingName) -> None:
    """Refuse to keep in host memory what can't be kept there.

    Raises:
        TrainerUsageError: It can't.
    """
    offload, possible = config.sharding.offload, OFFLOADS[kind]
    if choose_device(config.model) == "cpu":
        raise TrainerUsageError(
            f'sharding.offload="{offload}": the model is computed on CPUs, so everything is in host memory already; '
            'expected "none"'
        )
    if not possible:
        raise TrainerUsageError(
            f'sharding.offload="{offload}": only what several processes share by sharding.kind can be kept in host '
            'memory; expected "none"'
        )
    if offload not in possible:
        raise TrainerUsageError(
            f'sharding.offload="{offload}" with sharding.kind="{kind}": expected "none" or '
            f"{' or '.join(json.dumps(name) for name in possible)}"
        )


def check_sampler(sampler: SamplerSection, ranks: Ranks) -> None:
    """Refuse copies of the sampler's model that the processes can't form, before a model is loaded.

    Raises:
        TrainerUsageError: They can't.
    """
    if ranks.size % sampler.tensor_ranks:
        raise TrainerUsageError(
            f"sampler.tensor_ranks={sampler.tensor_ranks}: expected a divisor of the number of processes, {ranks.size}"
        )


def sharding_kind(config: TrainingConfig, ranks: Ranks) -> ShardingName:
    """How the recipe's weights are kept by these processes."""
    return "none" if ranks.size == 1 else config.sharding.kind or "fsdp2"


def is_spread_by_fsdp2(config: TrainingConfig, ranks: Ranks, *, is_trained: bool = True) -> bool:
    """Whether these processes spread a model's weights by FSDP2.

    What DeepSpeed spreads is spread when the optimizer is created. A model that isn't trained has none, and is left to
    FSDP2 in any case.
    """
    kind = sharding_kind(config, ranks)
    return ranks.group is not None and kind != "none" and not (is_trained and kind in ZERO_STAGES)


def save_memory(policy: Policy, config: TrainingConfig, ranks: Ranks) -> None:
    """Spread the policy over the processes and recompute its activations, as the recipe says; all ranks together."""
    if config.activation_checkpointing != "none":
        row_scorer_of(policy).recompute_layers(offload=config.activation_checkpointing == "offload")
    is_trained = any(weight.requires_grad for weight in policy.model.parameters())
    if ranks.group is None or policy.is_sharded or not is_spread_by_fsdp2(config, ranks, is_trained=is_trained):
        return
    shard_policy(policy, ranks.group, shard_ranks=config.sharding.shard_ranks, offload=config.sharding.offload == "all")


def open_reference(config: GrpoConfig, ranks: Ranks) -> Policy:
    """The starting model, which is not trained, kept like the model in training."""
    is_spread = is_spread_by_fsdp2(config, ranks, is_trained=False)
    reference = open_policy(config.model, config.dtype, is_spread_later=is_spread)
    reference.model.requires_grad_(False)
    save_memory(reference, config, ranks)
    return reference


@contextmanager
def open_engine(
    sampler: SamplerSection,
    policy: Policy,
    folder: Path,
    *,
    engine: RolloutEngine | None,
    max_model_len: int,
    dtype: DtypeName,
    is_trained: bool = False,
    ranks: Ranks = ALONE,
    allow_pickle_weights: bool = False,
) -> Generator[RolloutEngine]:
    """A sampler with the policy's weights, for as long as the block runs.

    Args:
        sampler: The kind of sampler, and its limits.
        policy: The policy with the weights to sample with.
        folder: The checkpoint folder with which training began, without adapters.
        engine: The caller's own sampler to use instead; it gets the policy's weights and stays open.
        max_model_len: Maximum tokens of a prompt with its response.
        dtype: Type of its weights.
        is_trained: Whether the policy has other weights by now.
        ranks: Processes that each open a sampler; together they form the sampler.
        allow_pickle_weights: Whether a sampler with a model of its own may load it from pickles.
    """
    if engine is not None:
        engine.update_weights(policy)
        yield engine if ranks.group is None else JointSampler(engine, ranks)
        return
    if sampler.engine == "transformers":
        from mrsp_engine.rollout.transformers import TransformersRolloutEngine

        sampled = policy
        if policy.is_sharded:
            # A second, whole model, which gets the new weights after every step.
            sampled = load_policy(
                folder,
                dtype=policy.dtype,
                store=policy.store,
                device=str(policy.device),
                allow_pickle_weights=allow_pickle_weights,
            )
        opened: RolloutEngine = TransformersRolloutEngine(sampled)
    else:
        from mrsp_engine.rollout.vllm.adapter import SamplerAdapter
        from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine

        adapter = None
        if policy.adapters is not None and sampler.takes_adapters(dtype):
            adapter = SamplerAdapter(policy.adapters.rank, policy.adapters.sampled_layers)
        opened = VllmRolloutEngine(
            folder,
            policy.store,
            max_model_len=max_model_len,
            memory_bytes=sampler.memory_bytes,
            max_num_seqs=sampler.max_num_seqs,
            dtype=dtype,
            adapter=adapter,
            tensor_parallel_size=sampler.tensor_ranks,
        )
    try:
        if is_trained or policy.adapters is not None:
            opened.update_weights(policy)
        tensor_ranks = sampler.tensor_ranks if sampler.engine == "vllm" else 1
        yield opened if ranks.group is None else JointSampler(opened, ranks, tensor_ranks)
    finally:
        opened.close()
