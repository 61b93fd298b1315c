"""Loads the models of a stage: the policy in the trainer's precision, and the sampler that generates responses."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from longrl_trainer.config.sections import DtypeName, LoraSection, ModelSection, SamplerSection
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.training.adapters import LoraAdapters
from longrl_trainer.training.checkpoints import Checkpoint
from longrl_trainer.training.joint_sampler import JointSampler
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE, Ranks, choose_device
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout.base import RolloutEngine

FULL_WEIGHTS = LoraSection()
TORCH_DTYPES: dict[DtypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def open_policy(model: ModelSection, dtype: DtypeName) -> Policy:
    """Load the recipe's model."""
    store = EmbeddingStore(model.store)
    return load_policy(
        model.folder,
        dtype=TORCH_DTYPES[dtype],
        store=store,
        device=choose_device(model),
        allow_pickle_weights=model.allow_pickle_weights,
    )


def open_training_policy(
    model: ModelSection,
    dtype: DtypeName,
    *,
    policy: Policy | None,
    checkpoint: Checkpoint | None,
    lora: LoraSection = FULL_WEIGHTS,
    seed: int = 0,
) -> Policy:
    """The policy at the point where training begins or continues, with the media encoder frozen.

    Saved models always have the layout of the model that training started from.

    Args:
        model: The model to start from.
        dtype: Type of its weights.
        policy: The same model, if the caller has already loaded it.
        checkpoint: Where an interrupted run continues.
        lora: The adapters to train instead of its weights.
        seed: Determines their first values.

    Raises:
        TrainerUsageError: The model can't get the adapters that the recipe asks for, or has some already.
    """
    if policy is not None and policy.adapters is not None:
        raise TrainerUsageError(f"{model.folder}: the given policy has adapters already; load the model anew")
    if lora.rank is not None:
        policy = policy or open_policy(model, dtype)
        policy.source = model.folder
        adapters = LoraAdapters(policy, lora, seed=seed)
        if checkpoint is not None:
            adapters.load(checkpoint.adapter_folder)
        policy.freeze_vision()
        return policy
    if checkpoint is None:
        policy = policy or open_policy(model, dtype)
    else:
        continued = open_policy(model.model_copy(update={"folder": checkpoint.model_folder}), dtype)
        if policy is None:
            policy = continued
        else:
            policy.model.load_state_dict(continued.model.state_dict())
    policy.source = model.folder
    policy.freeze_vision()
    return policy


def create_optimizer(policy: Policy, config: TrainingConfig) -> Optimizer:
    """The recipe's optimizer for the trained parameters of the policy."""
    return Optimizer(
        policy.model,
        weight_decay=config.weight_decay,
        max_gradient_norm=config.max_gradient_norm,
        name=config.optimizer,
        muon_learning_rate_ratio=config.muon_learning_rate_ratio,
    )


@contextmanager
def open_engine(
    sampler: SamplerSection,
    policy: Policy,
    folder: Path,
    *,
    engine: RolloutEngine | None,
    max_model_len: int,
    dtype: DtypeName,
    ranks: Ranks = ALONE,
) -> Generator[RolloutEngine]:
    """A sampler with the policy's weights, for as long as the block runs.

    Args:
        sampler: The kind of sampler, and its limits.
        policy: The policy with the weights to sample with.
        folder: A checkpoint folder with those weights, without adapters.
        engine: The caller's own sampler to use instead; it gets the policy's weights and stays open.
        max_model_len: Maximum tokens of a prompt with its response.
        dtype: Type of its weights.
        ranks: Processes that each open a sampler; together they form the sampler.
    """
    if engine is not None:
        engine.update_weights(policy)
        yield engine if ranks.group is None else JointSampler(engine, ranks)
        return
    if sampler.engine == "transformers":
        from mrsp_engine.rollout.transformers import TransformersRolloutEngine

        opened: RolloutEngine = TransformersRolloutEngine(policy)
    else:
        from mrsp_engine.rollout.vllm.adapter import SamplerAdapter
        from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine

        adapter = None
        if sampler.lora_sync == "adapter" and policy.adapters is not None:
            adapter = SamplerAdapter(policy.adapters.rank, policy.adapters.sampled_layers)
        opened = VllmRolloutEngine(
            folder,
            policy.store,
            max_model_len=max_model_len,
            memory_bytes=sampler.memory_bytes,
            max_num_seqs=sampler.max_num_seqs,
            dtype=dtype,
            adapter=adapter,
        )
    try:
        if policy.adapters is not None:
            opened.update_weights(policy)
        yield opened if ranks.group is None else JointSampler(opened, ranks)
    finally:
        opened.close()
