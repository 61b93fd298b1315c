"""What the planner knows about a model: the numbers of its layers and heads, its widths, and its vision tower."""

from dataclasses import dataclass

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.planner.videos import VideoRule

DELTA_CHUNK = 64
"""Tokens that the gated delta rule computes together."""

__all__ = ["LinearShape", "ModelShape", "VisionShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """A vision tower.

    Attributes:
        width: Number of channels.
        intermediate_size: Width of its feed-forward layers.
        depth: Number of blocks.
        patch_size: Pixels along a patch's edge.
        merge_size: Patches along the edge of the square that becomes one token.
        frames_per_group: Frames that are encoded together (a temporal patch).
        num_linears: Linear layers of a feed-forward layer: 3 if it is gated, else 2.
        window_patches: Number of patches in a window, where most blocks attend within windows.
        full_share: Share of the blocks that attend over the whole group.
        fixed_size: Edge of the frames in pixels, where the tower accepts one size only.
        extra_tokens: Tokens added to every frame.
        levels: Embeddings of one token: 1, plus one for every DeepStack level.
        videos: How the tokens of a video are counted.
    """

    width: int
    intermediate_size: int
    depth: int
    patch_size: int
    merge_size: int = 2
    frames_per_group: int = 2
    num_linears: int = 2
    window_patches: int | None = None
    full_share: float = 1.0
    fixed_size: int | None = None
    extra_tokens: int = 0
    levels: int = 1
    videos: VideoRule | None = None

    def tokens_per_group(self, frame_pixels: int) -> int:
        """Tokens of one group of frames of the given number of pixels each."""
        if self.fixed_size is not None:
            return (-(-(self.fixed_size // self.patch_size) // self.merge_size)) ** 2 + self.extra_tokens
        return max(1, round(frame_pixels / (self.patch_size * self.merge_size) ** 2)) + self.extra_tokens

    def num_groups(self, num_frames: int) -> int:
        """Number of groups of the given number of frames."""
        return -(-num_frames // self.frames_per_group)

    def operations_per_group(self, frame_pixels: int) -> float:
        """Floating-point operations of one group of n patches.

        depth × n × (2 × (4 w² + linears × w × i) + 4 w × a): two per weight and patch, four per channel and pair of
        patches; each attends to a = n patches in full blocks and to its window in the others.
        """
        pixels = frame_pixels if self.fixed_size is None else self.fixed_size**2
        patches = pixels / self.patch_size**2
        window = min(patches, self.window_patches or patches)
        attended = self.full_share * patches + (1 - self.full_share) * window
        weights = 4 * self.width**2 + self.num_linears * self.width * self.intermediate_size
        return self.depth * patches * (2 * weights + 4 * self.width * attended)

    @property
    def num_parameters(self) -> int:
        """Weights of its blocks."""
        return self.depth * (4 * self.width**2 + self.num_linears * self.width * self.intermediate_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """The layers of a model that have linear attention (the gated delta rule) instead of keys and values.

    Attributes:
        num_layers: Number M of such layers.
        key_heads: Heads k of queries and keys.
        value_heads: Heads h of values, each with a state of its own.
        key_channels: Channels e of a key.
        value_channels: Channels v of a value.
    """

    num_layers: int
    key_heads: int
    value_heads: int
    key_channels: int
    value_channels: int

    @property
    def mixed(self) -> int:
        """Channels of queries, keys and values, which are convolved: 2 k e + h v."""
        return 2 * self.key_heads * self.key_channels + self.values

    @property
    def values(self) -> int:
        """Channels of all values, h v."""
        return self.value_heads * self.value_channels

    @property
    def outputs(self) -> int:
        """Widths of the projections of a layer's input: of what is convolved, the gate and two rates of each head."""
        return self.mixed + self.values + 2 * self.value_heads

    @property
    def operations(self) -> float:
        """Operations of the rule on a token in one layer, forward, in chunks of c = 64 tokens.

        Of each head: keys by keys and queries by keys (4 c e), two triangular solutions (c (e + v)), the chunk's own
        part (2 c v), and three products with the state (6 e v).
        """
        keys, values = self.key_channels, self.value_channels
        of_chunk = 4 * keys + keys + values + 2 * values
        return float(self.value_heads * (DELTA_CHUNK * of_chunk + 6 * keys * values))

    @property
    def state_bytes(self) -> float:
        """Bytes of a sequence's states in all layers, in float32: 4 M h e v."""
        return 4.0 * self.num_layers * self.value_heads * self.key_channels * self.value_channels


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A language model, and its vision tower.

    Attributes:
        name: What it is called.
        hidden_size: Number of channels.
        num_layers: Number L of layers.
        heads: The heads of its attention.
        intermediate_size: Width of its gated feed-forward layers.
        vocab_size: Rows of its head.
        is_tied: Whether the head is the input embedding.
        max_positions: Longest sequence it was trained for.
        vision: Its tower; None for text-only models.
        linear: Its layers of linear attention, if it has some.
        is_gated: Whether the output of attention has a gate, another projection of the width of the queries.
        lora_rank: Rank of the adapters that are trained instead of the weights, in all linear layers of the language
            model; 0 for none.
    """

    name: str
    hidden_size: int
    num_layers: int
    heads: AttentionHeads
    intermediate_size: int
    vocab_size: int
    is_tied: bool
    max_positions: int
    vision: VisionShape | None = None
    linear: LinearShape | None = None
    is_gated: bool = False
    lora_rank: int = 0

    @property
    def num_attention_layers(self) -> int:
        """Layers with keys and values, L - M."""
        return self.num_layers - (self.linear.num_layers if self.linear else 0)

    @property
    def layer_weights(self) -> int:
        """Matrix weights of one layer, of the kind with more.

        2 D (H + K) C of attention, D H C more with a gate; D (2 k e + 3 h v + 2 h) of linear attention; 3 D I of the
        feed-forward layer.
        """
        return max(self._attention_weights, self._linear_weights) + 3 * self.hidden_size * self.intermediate_size

    @property
    def all_layer_weights(self) -> int:
        """Matrix weights of all layers together."""
        of_linear = self.linear.num_layers * self._linear_weights if self.linear else 0
        forward = 3 * self.num_layers * self.hidden_size * self.intermediate_size
        return self.num_attention_layers * self._attention_weights + of_linear + forward

    @property
    def _attention_weights(self) -> int:
        heads = 2 * (self.heads.query + self.heads.key) + (self.heads.query if self.is_gated else 0)
        return self.hidden_size * heads * self.heads.channels

    @property
    def _linear_weights(self) -> int:
        return self.hidden_size * (self.linear.outputs + self.linear.values) if self.linear else 0

    @property
    def head_weights(self) -> int:
        """Weights of the vocabulary projection, V D."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Weights of the language model, without norms and biases."""
        return self.all_layer_weights + self.head_weights * (1 if self.is_tied else 2)

    @property
    def num_adapter_parameters(self) -> int:
        """Weights of all adapters, R (I + O) of a matrix [O, I].

        Of attention R (4 D + 2 (H + K) C), with a gate R H C more; of the feed-forward layer 3 R (D + I); of linear
        attention R (5 D + the widths of its five matrices).
        """
        heads = 2 * (self.heads.query + self.heads.key) + (self.heads.query if self.is_gated else 0)
        attention = self.num_attention_layers * (4 * self.hidden_size + heads * self.heads.channels)
        if self.linear:
            attention += self.linear.num_layers * (5 * self.hidden_size + self.linear.outputs + self.linear.values)
        forward = 3 * self.num_layers * (self.hidden_size + self.intermediate_size)
        return self.lora_rank * (attention + forward)

    @property
    def num_trained_parameters(self) -> int:
        """Weights that have gradients and an optimizer's state."""
        return self.num_adapter_parameters or self.num_parameters

    @property
    def num_vision_parameters(self) -> int:
        """Weights of the tower's blocks."""
        return self.vision.num_parameters if self.vision else 0
