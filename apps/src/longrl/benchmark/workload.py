"""The workload of a step benchmark: a policy and its reference, a video whose frames are in memory, one question.

Frames are in memory from the start, so no figure includes decoding; a mode that encodes again pays only for encoding,
not for reading the file again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrl.errors import AppUsageError
from longrl.tiny_model import TinyModelSettings, build_tiny_model
from longrl_trainer.training.optimizer import Optimizer
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_encoder import EncodingPlan, FrameEncoder
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.language import LanguageSizes

FRAME_SIZE = 224
QUESTION = "What happens in this video, and in which order?"
TINY = TinyModelSettings(
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    intermediate_size=512,
    frame_pixels=FRAME_SIZE * FRAME_SIZE,
    max_position_embeddings=1 << 20,
)
"""Two layers with the proportions of a real model: grouped key heads, feed-forward layers four times the width."""


class HeldVideo:
    """A `Video` of seeded noise, held in memory.

    Args:
        frame_count: Number of frames, two per second.
        size: Rows and columns of a frame.
    """

    def __init__(self, frame_count: int, size: int = FRAME_SIZE) -> None:
        self.frame_count, self.height, self.width = frame_count, size, size
        self.timestamps: NDArray[np.float64] = np.arange(frame_count) / 2.0
        self.content_digest = hashlib.sha256(f"noise {frame_count} {size}".encode()).hexdigest()
        self._frames = np.random.default_rng(0).integers(0, 256, (frame_count, size, size, 3), np.uint8)

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """The frames, uint8 [F, H, W, 3]."""
        return self._frames[list(indices)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Models:
    """The models, which are loaded once.

    Attributes:
        policy: The model that is trained; no token ends a response, so that all responses have one length.
        reference: A frozen copy of it.
        optimizer: Updates the policy.
        encoder: The policy's encoder of frames.
    """

    policy: Policy
    reference: Policy
    optimizer: Optimizer
    encoder: FrameEncoder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """One question about one video, with the sizes of its step.

    Attributes:
        models: The models.
        video: The video.
        plan: Plan for encoding all its frames.
        group: The ranks; None for one process.
        group_size: Responses G.
        response_tokens: Tokens R of each.
        scratch: Folder for the embeddings of each step in turn.
    """

    models: Models
    video: HeldVideo
    plan: EncodingPlan
    group: SequenceGroup | None
    group_size: int
    response_tokens: int
    scratch: Path

    @property
    def num_ranks(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else self.group.size

    @property
    def own_responses(self) -> range:
        """The responses of this rank in modes where each rank computes some alone."""
        rank = 0 if self.group is None else self.group.rank
        return range(self.group_size * rank // self.num_ranks, self.group_size * (rank + 1) // self.num_ranks)

    def encode(self) -> Tensor:
        """The video's embedding, encoded by this rank only."""
        with torch.no_grad():
            return torch.cat(list(self.models.encoder.encode_groups(self.video, self.plan)))


def build_measured(folder: Path, family: str | None) -> None:
    """Write the tiny model that is measured: by default Qwen2.5-VL, or one of a family in the same sizes.

    Raises:
        EngineUsageError: There is no such family.
    """
    if family is None:
        build_tiny_model(folder, [QUESTION], TINY, seed=0)
        return
    sizes = LanguageSizes(
        hidden_size=TINY.hidden_size,
        num_layers=TINY.num_layers,
        num_heads=TINY.num_heads,
        num_key_value_heads=TINY.num_key_value_heads,
        intermediate_size=TINY.intermediate_size,
        max_position_embeddings=TINY.max_position_embeddings,
    )
    build_tiny(family, folder, seed=0, sizes=sizes)


def load_models(
    folder: Path, scratch: Path, *, dtype: torch.dtype, device: torch.device, checkpointing: bool
) -> Models:
    """Load a checkpoint as the policy and a second time as its reference.

    Raises:
        AppUsageError: The model doesn't accept videos.
    """
    policy, reference = (
        load_policy(folder, dtype=dtype, store=EmbeddingStore(scratch / "embeddings"), device=device) for _ in range(2)
    )
    encoder = policy.encoder if isinstance(policy, LanguagePolicy) else None
    if encoder is None:
        raise AppUsageError(
            f"{folder}: a model of type {policy.name} accepts no videos; set another --model or --family"
        )
    policy.end_token_ids = ()
    policy.freeze_vision()
    reference.model.requires_grad_(False)
    if checkpointing:
        getattr(policy.model, "gradient_checkpointing_enable")()  # noqa: B009 - a method of transformers' models
        policy.model.train()
    optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1.0)
    return Models(policy=policy, reference=reference, optimizer=optimizer, encoder=encoder)
