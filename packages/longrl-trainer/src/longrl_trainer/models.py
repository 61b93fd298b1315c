"""Opening what a stage works with: the policy in the trainer's precision, and the sampler that writes responses."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from longrl_trainer.checkpoints import Checkpoint
from longrl_trainer.config import DtypeName, ModelSection, SamplerSection, TrainingConfig
from longrl_trainer.optimizer import Optimizer
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout.base import RolloutEngine

TORCH_DTYPES: dict[DtypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def open_policy(model: ModelSection, dtype: DtypeName) -> Policy:
    """Load the model a recipe names."""
    device = model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_policy(model.folder, dtype=TORCH_DTYPES[dtype], store=EmbeddingStore(model.store), device=device)


def open_training_policy(
    model: ModelSection, dtype: DtypeName, *, policy: Policy | None, checkpoint: Checkpoint | None
) -> Policy:
    """The policy at the point where training begins or continues, with the encoder of media frozen.

    Args:
        model: The model to start from.
        dtype: Type of its weights.
        policy: The same model, if the caller has it loaded already.
        checkpoint: Where an interrupted run continues.
    """
    if checkpoint is None:
        policy = policy or open_policy(model, dtype)
    else:
        continued = open_policy(model.model_copy(update={"folder": checkpoint.model_folder}), dtype)
        if policy is None:
            policy = continued
        else:
            policy.model.load_state_dict(continued.model.state_dict())
    policy.freeze_vision()
    return policy


def create_optimizer(policy: Policy, config: TrainingConfig) -> Optimizer:
    """The optimizer a recipe asks for, over what the policy trains."""
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
) -> Generator[RolloutEngine]:
    """A sampler with the policy's weights, for as long as the block runs.

    Args:
        sampler: Which one, and its limits.
        policy: Whose weights it must sample with.
        folder: A checkpoint folder with those weights.
        engine: A sampler of the caller's to use instead; it gets the policy's weights and stays open.
        max_model_len: Longest prompt with its response.
        dtype: Type of its weights.
    """
    if engine is not None:
        engine.update_weights(policy)
        yield engine
        return
    if sampler.engine == "transformers":
        from mrsp_engine.rollout.transformers import TransformersRolloutEngine

        opened: RolloutEngine = TransformersRolloutEngine(policy)
    else:
        from mrsp_engine.rollout.vllm import VllmRolloutEngine

        opened = VllmRolloutEngine(
            folder,
            policy.store,
            max_model_len=max_model_len,
            memory_bytes=sampler.memory_bytes,
            max_num_seqs=sampler.max_num_seqs,
            dtype=dtype,
        )
    try:
        yield opened
    finally:
        opened.close()
