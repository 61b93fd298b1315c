"""The peak memory of a rank during a step, part by part.

Symbols as in `costs`; I width of the feed-forward layers, l = S / n tokens of a row on one rank.
"""

from dataclasses import dataclass
from typing import Literal

from mrsp_engine.layout import PackedLayout
from mrsp_engine.planner.costs import ITEM_BYTES, Sizes, embedding_bytes, key_value_bytes
from mrsp_engine.planner.shapes import ModelShape

__all__ = ["Strategy", "memory_by_part", "rollout_bytes"]

Sharding = Literal["none", "optimizer", "everything"]
MASTER_BYTES, MOMENT_BYTES = 4, 8
LOGIT_CHUNK_BYTES = 4 * (128 << 20)
"""Bytes of a chunk's logits, and of what is computed from them (`mrsp_engine.row_scorer.LOGIT_BYTES`)."""
RUNTIME_BYTES = 2e9
"""Bytes used by the driver, kernels and communication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How memory is saved.

    Attributes:
        is_checkpointed: Recompute the activations of a layer in the backward pass.
        sharding: What is sharded over the ranks: nothing, the optimizer state, or weights and gradients too.
        is_optimizer_offloaded: Keep the optimizer state in host memory.
        are_activations_offloaded: Keep the activations saved between layers in host memory.
    """

    is_checkpointed: bool = False
    sharding: Sharding = "none"
    is_optimizer_offloaded: bool = False
    are_activations_offloaded: bool = False


def activation_bytes(shape: ModelShape, num_tokens: float, strategy: Strategy) -> float:
    """Bytes that one rank keeps for the backward pass of the given number of tokens.

    Per token a layer keeps two residual streams and the inputs of its two norms and projections (8 D, the norms' copies
    in float32), queries before and after rotation and the output (3 H C), keys and values (4 K C) and four widths of
    the feed-forward layer (4 I). With checkpointing each layer keeps its input, D, and one layer all of it; with
    offloading, all inputs except two are in host memory. Each of seven adapters keeps its R inner numbers.
    """
    heads = shape.heads
    of_layer = 8 * shape.hidden_size + (3 * heads.query + 4 * heads.key) * heads.channels + 4 * shape.intermediate_size
    of_layer += 7 * shape.lora_rank
    if not strategy.is_checkpointed:
        return num_tokens * shape.num_layers * of_layer * ITEM_BYTES
    kept_layers = 2 if strategy.are_activations_offloaded else shape.num_layers
    return num_tokens * (kept_layers * shape.hidden_size + of_layer) * ITEM_BYTES


def memory_by_part(
    shape: ModelShape,
    sizes: Sizes,
    row: PackedLayout,
    *,
    rows_tokens: int,
    sequence_ranks: int,
    all_ranks: int,
    strategy: Strategy,
) -> dict[str, float]:
    """Bytes of one rank during the update, by part.

    Weights and gradients take 2 bytes per number, the optimizer 12 (a float32 copy and two moments). The reference is a
    second copy of the weights, unless only adapters are trained: it is then the weights without them. One layer's keys
    and values of the whole row, with their gradients in float32, exist while it is computed.

    With everything sharded (`mrsp_engine.sharding`) trained weights exist only as the optimizer's float32 copy, and
    gradients are kept in float32. Whole are the weights of embedding and head, of the layer that is computed and of the
    next, and the head's gradient.
    """
    is_spread = strategy.sharding == "everything"
    spread = all_ranks if is_spread else 1
    optimizer_spread = 1 if strategy.sharding == "none" else all_ranks
    weights, vision, trained = shape.num_parameters, shape.num_vision_parameters, shape.num_trained_parameters
    tokens = rows_tokens / sequence_ranks
    gathered = rows_tokens * 2 * shape.heads.key * shape.heads.channels * (ITEM_BYTES + 4)
    held = weights + shape.num_adapter_parameters
    gradient_bytes = trained * ITEM_BYTES
    if is_spread:
        frozen = held - trained
        held = frozen / spread + shape.head_weights * (1 if shape.is_tied else 2) + 2 * shape.layer_weights
        gradient_bytes = trained * MASTER_BYTES / spread + (0 if shape.lora_rank else shape.head_weights * ITEM_BYTES)
    return {
        "weights": (held + vision) * ITEM_BYTES,
        "reference": 0.0 if shape.lora_rank else weights * ITEM_BYTES / spread,
        "gradients": gradient_bytes,
        "optimizer": 0.0
        if strategy.is_optimizer_offloaded
        else trained * (MASTER_BYTES + MOMENT_BYTES) / optimizer_spread,
        "activations": activation_bytes(shape, tokens, strategy) + (gathered if sequence_ranks > 1 else 0.0),
        "embeddings": embedding_bytes(shape, sizes) * rows_tokens / row.total / sequence_ranks,
        "logits": float(LOGIT_CHUNK_BYTES),
        "runtime": RUNTIME_BYTES,
    }


def rollout_bytes(shape: ModelShape, sizes: Sizes, tensor_ranks: int) -> dict[str, float]:
    """Bytes of one rank of the sampler, whose weights and key heads are sharded over `tensor_ranks`.

    Keys and values of one prompt and its G responses, the embedding of the prompt, and the weights; a rank that
    alternates between training and sampling holds either these or those of the update.
    """
    spread = min(tensor_ranks, shape.heads.key)
    tokens = sizes.prompt_tokens + sizes.group_size * sizes.response_tokens
    return {
        "weights": (shape.num_parameters / tensor_ranks + shape.num_vision_parameters) * ITEM_BYTES,
        "KV cache": key_value_bytes(shape, tokens) / spread,
        "embeddings": embedding_bytes(shape, sizes),
        "runtime": RUNTIME_BYTES,
    }
