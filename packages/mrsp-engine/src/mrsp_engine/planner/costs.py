"""The cost of one GRPO step, stage by stage, in operations, bytes and seconds.

Symbols: N matrix weights, L layers, D hidden size, H query heads, K key heads, C channels of a head, P prompt tokens,
R response tokens, G responses, S tokens of a row, n ranks that share a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mrsp_engine.attention.split import BACKWARD_PER_FORWARD, AttentionSettings, RowSplit, choose_split
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.planner.hardware import Accelerator
from mrsp_engine.planner.shapes import ModelShape
from mrsp_engine.planner.videos import PlannedVideo

Mode = Literal["plain", "cached", "published", "shared"]
STAGES = ("encode", "rollout", "old", "reference", "update")
KlPlace = Literal["none", "loss", "reward"]
SCORING_STAGES: Mapping[KlPlace, tuple[str, ...]] = {"none": (), "loss": ("reference",), "reward": ("old", "reference")}
"""The passes before the update that a step needs, by where the divergence from the reference counts.

The policy's own log-probabilities come out of the update's first pass; only rewards that the divergence lowers have to
be known before it.
"""
ITEM_BYTES = 2
"""Bytes of a number in bfloat16."""
OTHER_TOKENS = 64
"""Approximate number of prompt tokens that aren't media: the question and the template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One question about one video.

    Attributes:
        num_frames: Frames shown.
        frame_pixels: Pixels of a frame as the encoder sees it.
        group_size: Responses G.
        response_tokens: Tokens R of each.
        prompt_tokens: Tokens P of the prompt.
        prompt_positions: Its positions; None if they depend on times that aren't known.
    """

    num_frames: int
    frame_pixels: int
    group_size: int
    response_tokens: int
    prompt_tokens: int
    prompt_positions: int | None = None

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        *,
        num_frames: int,
        frame_pixels: int,
        group_size: int,
        response_tokens: int,
        video: PlannedVideo | None = None,
    ) -> "Sizes":
        """Sizes with the prompt tokens of the video and the question.

        The number for a video is exact. Without one it is groups of frames × tokens of a group of the given pixels.
        """
        vision = shape.vision
        of_media = vision.num_groups(num_frames) * vision.tokens_per_group(frame_pixels) if vision else 0
        positions = of_media if vision is None or vision.fixed_size is not None else None
        if video is not None and vision is not None and vision.videos is not None:
            counted = vision.videos.count(video)
            of_media, num_frames, frame_pixels = counted.tokens, len(video.seconds), counted.frame_pixels
            positions = counted.positions
        return cls(
            num_frames=num_frames,
            frame_pixels=frame_pixels,
            group_size=group_size,
            response_tokens=response_tokens,
            prompt_tokens=of_media + OTHER_TOKENS,
            prompt_positions=None if positions is None else positions + OTHER_TOKENS,
        )

    def rows(self, mode: Mode) -> tuple[int, PackedLayout]:
        """The number of rows of a pass, and one of them: one row of P + G R tokens, or G rows of P + R."""
        if mode == "shared":
            return 1, PackedLayout((GroupLengths(self.prompt_tokens, (self.response_tokens,) * self.group_size),))
        return self.group_size, PackedLayout((GroupLengths(self.prompt_tokens, (self.response_tokens,)),))

    @property
    def scored_tokens(self) -> int:
        """Tokens G R whose log-probabilities a pass computes."""
        return self.group_size * self.response_tokens


def row_split(shape: ModelShape, layout: PackedLayout, num_ranks: int, hardware: Accelerator) -> RowSplit:
    """The engine's own division of a row; see `mrsp_engine.attention.split`."""
    settings = AttentionSettings(rates=hardware.machine_rates)
    return choose_split(layout, shape.heads, num_ranks, settings, item_bytes=ITEM_BYTES, device_type="cuda")


def forward_operations(shape: ModelShape, layout: PackedLayout, num_scored: int) -> tuple[float, float]:
    """Operations of one forward pass over a row: of its linear layers, and of its attention.

    Linear: 2 N S (N with the adapters' weights), and 2 V D for every scored token. Attention: 4 L H C for every
    query-key pair; of layers with a state, what their rule needs for every token
    (`mrsp_engine.planner.shapes.LinearShape.operations`).
    """
    weights = shape.all_layer_weights + shape.num_adapter_parameters
    linear = 2.0 * weights * layout.total + 2.0 * shape.head_weights * num_scored
    attention = 4.0 * shape.num_attention_layers * shape.heads.query * shape.heads.channels * layout.num_visible_pairs
    if shape.linear:
        attention += shape.linear.num_layers * shape.linear.operations * layout.total
    return linear, attention


def encode_operations(shape: ModelShape, sizes: Sizes) -> float:
    """Operations of encoding all frames once: groups of frames × operations of a group."""
    vision = shape.vision
    return vision.num_groups(sizes.num_frames) * vision.operations_per_group(sizes.frame_pixels) if vision else 0.0


def exchanged_bytes(
    shape: ModelShape, layout: PackedLayout, split: RowSplit, item_bytes: int = ITEM_BYTES
) -> tuple[float, float]:
    """Bytes a rank sends for the attention of all layers in one pass over a row: forward, and backward.

    By heads: all queries, keys, values and outputs of a rank's S / n tokens except its own share, (2 H + 2 K) C numbers
    each, and their gradients in the backward pass. By tokens: the keys and values, 2 K C / h, of a slice of S / t
    tokens to each of the t - 1 others (h head ranks, t token ranks); in the backward pass they are sent again, and so
    are their gradients in at least float32, in a ring once more because they return to their owner. Layers with a state
    are always split by heads, over all n ranks: 2 k e + 2 h v + 2 h numbers of a token, and their gradients.
    """
    heads, head_ranks, token_ranks = shape.heads, split.head_ranks, split.token_ranks
    own_key_heads = -(-heads.key // head_ranks)
    traded = layout.total / (head_ranks * token_ranks) * (2 * heads.query + 2 * own_key_heads * head_ranks)
    traded *= heads.channels * item_bytes * (head_ranks - 1) / head_ranks
    numbers = layout.total / token_ranks * 2 * own_key_heads * heads.channels
    gathered = (token_ranks - 1) * numbers * item_bytes
    returns = token_ranks if split.exchange == "ring" and token_ranks > 1 else token_ranks - 1
    returned = returns * numbers * max(item_bytes, 4)
    num_ranks, of_states = head_ranks * token_ranks, 0.0
    if shape.linear:
        numbers = shape.linear.mixed + shape.linear.values + 2 * shape.linear.value_heads
        of_states = shape.linear.num_layers * layout.total / num_ranks * numbers * item_bytes * (1 - 1 / num_ranks)
    layers = shape.num_attention_layers
    return (traded + gathered) * layers + of_states, (traded + gathered + returned) * layers + of_states


def predict_stages(
    shape: ModelShape, sizes: Sizes, hardware: Accelerator, *, num_ranks: int, mode: Mode, is_checkpointed: bool
) -> dict[str, float]:
    """Seconds of every stage.

    encode     operations of the frames / (n × linear rate); in `plain`, on every rank, once for the sampler and again
               for each of its G / n responses in each of the three passes.
    rollout    one forward pass over the prompt on n ranks, then R steps, each of which reads the weights' and the G
               sequences' keys', values' and states' share of a rank from memory.
    old, reference   operations of the rows / (n × rates) + bytes exchanged / link.
    update     the same for forward and backward, with 2 × the linear work of a forward pass and 2.5 × its attention
               in backward, and one forward pass more where activations are recomputed. Where adapters are trained,
               the weights have no gradient of their own, and the linear work of backward is that of one forward pass.

    The update of the weights themselves, 2 × 16 bytes each, is in `update`.
    """
    num_rows, row = sizes.rows(mode)
    is_split = mode in ("published", "shared")
    split = row_split(shape, row, num_ranks if is_split else 1, hardware)
    linear, attention = forward_operations(shape, row, sizes.scored_tokens // num_rows)
    # Where rows aren't split, each rank computes some complete rows.
    turns = num_rows if is_split else -(-num_rows // num_ranks)
    share = num_ranks if is_split else 1
    linear_seconds = turns * linear / share / hardware.linear_rate
    attention_seconds = turns * attention / share / hardware.attention_rate
    sent, sent_back = exchanged_bytes(shape, row, split)
    forward = linear_seconds + attention_seconds + turns * sent / hardware.link_bandwidth
    backward = (1 if shape.lora_rank else 2) * linear_seconds + BACKWARD_PER_FORWARD * attention_seconds
    backward += turns * sent_back / hardware.link_bandwidth
    once = encode_operations(shape, sizes) / hardware.linear_rate
    weight_bytes = shape.num_trained_parameters * 32 / num_ranks
    return {
        "encode": once * (1 + 3 * turns) if mode == "plain" else once / num_ranks,
        "rollout": _rollout_seconds(shape, sizes, hardware, num_ranks),
        "old": forward,
        "reference": forward,
        "update": forward * (2 if is_checkpointed else 1) + backward + weight_bytes / hardware.memory_bandwidth,
    }


def _rollout_seconds(shape: ModelShape, sizes: Sizes, hardware: Accelerator, num_ranks: int) -> float:
    prompt = PackedLayout((GroupLengths(sizes.prompt_tokens, ()),))
    linear, attention = forward_operations(shape, prompt, 1)
    prefill = (linear / hardware.linear_rate + attention / hardware.attention_rate) / num_ranks
    read = shape.num_parameters * ITEM_BYTES + sizes.group_size * key_value_bytes(shape, sizes.prompt_tokens)
    if shape.linear:
        read += sizes.group_size * shape.linear.state_bytes
    return prefill + sizes.response_tokens * read / num_ranks / hardware.memory_bandwidth


def key_value_bytes(shape: ModelShape, num_tokens: int) -> float:
    """Bytes of the keys and values of the given number of tokens in all layers that have them: 2 K C numbers each."""
    return 2.0 * shape.heads.key * shape.heads.channels * shape.num_attention_layers * num_tokens * ITEM_BYTES


def embedding_bytes(shape: ModelShape, sizes: Sizes) -> float:
    """Bytes the video takes in the embedding store: D numbers per token, and as many for every DeepStack level."""
    levels = shape.vision.levels if shape.vision else 0
    return float((sizes.prompt_tokens - OTHER_TOKENS) * shape.hidden_size * levels * ITEM_BYTES)


def moved_bytes(shape: ModelShape, sizes: Sizes, split: RowSplit, kl: KlPlace = "reward") -> dict[str, float]:
    """Bytes a rank sends in one step: attention in the forward passes and one backward pass, gradients, new weights.

    Forward are the passes without gradient, the update's own and its recomputation. Gradients are summed in a ring,
    2 (n - 1) / n of all trained weights, and the sampler receives the weights once, with adapters merged into them.
    """
    _, row = sizes.rows("shared")
    num_ranks = split.head_ranks * split.token_ranks
    weight_bytes = float(shape.num_parameters * ITEM_BYTES)
    sent, sent_back = exchanged_bytes(shape, row, split)
    return {
        "attention": (2 + len(SCORING_STAGES[kl])) * sent + sent_back,
        "gradients": 2 * (num_ranks - 1) / num_ranks * shape.num_trained_parameters * ITEM_BYTES,
        "weights to the sampler": weight_bytes,
    }
