"""The peak memory of a rank during a step, part by part.

Symbols as in `costs`; I width of the feed-forward layers, l = S / n tokens of a row on one rank.
"""

from dataclasses import dataclass
from typing import Literal

from mrsp_engine.layout import PackedLayout
from mrsp_engine.planner.costs import ITEM_BYTES, Sizes, embedding_bytes, key_value_bytes
from mrsp_engine.planner.shapes import ModelShape

__all__ = ["Sharding", "Strategy", "memory_by_part", "rollout_bytes"]

Sharding = Literal["none", "optimizer", "everything"]
MASTER_BYTES, MOMENT_BYTES, FINE_BYTES = 4, 8, 4
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
    """Bytes of activations on one rank while a layer's feed-forward part is differentiated, where they are most.

    Per token a layer keeps two residual streams and the inputs of its two norms and projections (8 D, the norms' copies
    in float32), queries before and after rotation and the output (3 H C), keys and values (4 K C) and four widths of
    the feed-forward layer (4 I), of which the gradients of two more are computed (2 I). With checkpointing each layer
    keeps its input, D, and one layer all of it; with offloading, all inputs except two are in host memory. Each of
    seven adapters keeps its R inner numbers. Linear attention keeps what is convolved before and after it (2 (2 k e +
    h v)), the queries and keys of every value head (2 h e) and values, output, gate and normed output (4 h v).
    """
    if not strategy.is_checkpointed:
        return num_tokens * (_of_layers(shape) + 2 * shape.intermediate_size) * ITEM_BYTES
    kept_layers = 2 if strategy.are_activations_offloaded else shape.num_layers
    now = max(_of_layer(shape), _of_linear_layer(shape)) - shape.hidden_size + 2 * shape.intermediate_size
    return num_tokens * (kept_layers * shape.hidden_size + now) * ITEM_BYTES


def memory_by_part(
    shape: ModelShape,
    sizes: Sizes,
    row: PackedLayout,
    *,
    rows_tokens: int,
    sequence_ranks: int,
    all_ranks: int,
    strategy: Strategy,
    has_reference: bool = True,
) -> dict[str, float]:
    """Bytes of one rank at the fullest moment of the update of a step of several rows, by part.

    The moments are the backward passes of the head and of a layer, and the optimizer's step. Weights take 2 bytes per
    number and trained ones that are sharded 4, as they are the optimizer's copy too; two moments take 8, and a copy of
    weights that aren't sharded 4. The reference, if there is one, is a second copy of the weights, unless only adapters
    are trained: it is then the weights without them. `longrl rehearse` finds the same by running the step's own code.
    """
    is_spread = strategy.sharding == "everything"
    spread = all_ranks if is_spread else 1
    optimizer_spread = 1 if strategy.sharding == "none" else all_ranks
    trained = shape.num_trained_parameters
    frozen = shape.num_parameters + shape.num_adapter_parameters - trained
    kept_bytes, state_bytes = (FINE_BYTES, MOMENT_BYTES) if is_spread else (ITEM_BYTES, MASTER_BYTES + MOMENT_BYTES)
    tokens = rows_tokens / sequence_ranks
    resident = {
        "weights": (trained * kept_bytes + frozen * ITEM_BYTES) / spread + shape.num_vision_parameters * ITEM_BYTES,
        "reference": 0.0 if shape.lora_rank or not has_reference else shape.num_parameters * ITEM_BYTES / spread,
        "optimizer": 0.0 if strategy.is_optimizer_offloaded else trained * state_bytes / optimizer_spread,
        "runtime": RUNTIME_BYTES,
    }
    embeddings = tokens * shape.hidden_size * (shape.vision.levels if shape.vision else 1) * ITEM_BYTES
    of_head = _head_moment(shape, tokens, strategy, spread)
    of_layer = _layer_moment(shape, rows_tokens, sequence_ranks, strategy, spread)
    kept = {"embeddings": embeddings} if strategy.is_checkpointed else {}  # otherwise only their norm is
    passes = [resident | moment | kept for moment in (of_head, of_layer)]
    copies = 0 if is_spread else MASTER_BYTES  # gradients in the type of the optimizer's copy
    optimizer_step = resident | {"gradients": trained * (kept_bytes + copies) / spread}
    return max((*passes, optimizer_step), key=lambda parts: sum(parts.values()))


def _of_layer(shape: ModelShape) -> int:
    """Numbers that a layer keeps of a token for its backward pass."""
    heads = shape.heads
    kept = 8 * shape.hidden_size + (3 * heads.query + 4 * heads.key) * heads.channels + 4 * shape.intermediate_size
    return kept + 7 * shape.lora_rank


def _of_linear_layer(shape: ModelShape) -> int:
    """The same for a layer of linear attention; 0 if there is none."""
    linear = shape.linear
    if linear is None:
        return 0
    mixing = 2 * linear.mixed + 2 * linear.value_heads * linear.key_channels + 4 * linear.values
    return 8 * shape.hidden_size + mixing + 4 * shape.intermediate_size + 8 * shape.lora_rank


def _of_layers(shape: ModelShape) -> int:
    """The same for all layers together."""
    num_linear = shape.num_layers - shape.num_attention_layers
    return shape.num_attention_layers * _of_layer(shape) + num_linear * _of_linear_layer(shape)


def _head_moment(shape: ModelShape, tokens: float, strategy: Strategy, spread: int) -> dict[str, float]:
    """The backward pass of the head, chunk by chunk: three copies of its gradient are added up at the end."""
    kept_layers = 2 if strategy.are_activations_offloaded else shape.num_layers
    kept = kept_layers * shape.hidden_size if strategy.is_checkpointed else _of_layers(shape)
    activations = tokens * (kept + 2 * shape.hidden_size) * ITEM_BYTES
    copies = 0 if shape.lora_rank else 3 * shape.head_weights * ITEM_BYTES
    moment = {
        "activations": activations,
        "gradients": _held_gradients(shape, strategy, spread) + copies,
    }
    if strategy.sharding == "everything":
        moment["gathered weights"] = (_root_weights(shape) + shape.layer_weights) * ITEM_BYTES
    return moment


def _layer_moment(
    shape: ModelShape, rows_tokens: int, sequence_ranks: int, strategy: Strategy, spread: int
) -> dict[str, float]:
    """The backward pass of a layer.

    Of sharded weights, the whole embedding and head and two layers are gathered, the next one ahead of time. Their
    gradients are whole until they are scattered: those of the head until the end of the pass, those of the layer after
    this one in float32, while the first matrix of this one has its own. A tied head's gradient waits for the
    embedding's.
    """
    gradients = _held_gradients(shape, strategy, spread)
    moment = {"activations": activation_bytes(shape, rows_tokens / sequence_ranks, strategy)}
    if strategy.sharding == "everything":
        moment["gathered weights"] = (_root_weights(shape) + 2 * shape.layer_weights) * ITEM_BYTES
    if not shape.lora_rank:
        if strategy.sharding == "everything":
            first = shape.hidden_size * shape.intermediate_size * ITEM_BYTES
            gradients += shape.head_weights * ITEM_BYTES + shape.layer_weights * FINE_BYTES + first
        elif shape.is_tied:
            gradients += shape.head_weights * ITEM_BYTES
    return moment | {"gradients": gradients}


def _held_gradients(shape: ModelShape, strategy: Strategy, spread: int) -> float:
    """Gradients of the rows before."""
    item_bytes = FINE_BYTES if strategy.sharding == "everything" else ITEM_BYTES
    return shape.num_trained_parameters * item_bytes / spread


def _root_weights(shape: ModelShape) -> int:
    """Embedding and head, which are gathered together."""
    return shape.head_weights * (1 if shape.is_tied else 2)


def rollout_bytes(shape: ModelShape, sizes: Sizes, tensor_ranks: int) -> dict[str, float]:
    """Bytes of one rank of the sampler, whose weights and key heads are sharded over `tensor_ranks`.

    Keys and values of one prompt and its G responses, the states of these, the embedding of the prompt, and the
    weights; a rank that alternates between training and sampling holds either these or those of the update.
    """
    spread = min(tensor_ranks, shape.heads.key)
    tokens = sizes.prompt_tokens + sizes.group_size * sizes.response_tokens
    return {
        "weights": (shape.num_parameters / tensor_ranks + shape.num_vision_parameters) * ITEM_BYTES,
        "KV cache": key_value_bytes(shape, tokens) / spread
        + (sizes.group_size * shape.linear.state_bytes / tensor_ranks if shape.linear else 0.0),
        "embeddings": embedding_bytes(shape, sizes),
        "runtime": RUNTIME_BYTES,
    }
