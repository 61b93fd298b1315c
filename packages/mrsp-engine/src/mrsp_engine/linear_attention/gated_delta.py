"""transformers' gated delta layers of Qwen3.5, taught to follow the engine's plan.

A pass with a plan (keyword `attention_plan`) computes a packed row, forked and split over ranks; one without is
transformers' own, caches included, so generation and plain rows work unchanged.

Shape legend: S row tokens, L own tokens, D hidden size, H value heads (h of a rank), K key heads, E and V channels of
a key and a value, C convolved channels.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeGatedDeltaNet

from mrsp_engine.attention.plan import AttentionPlan
from mrsp_engine.layout import PackedLayout
from mrsp_engine.linear_attention.forking import DeltaHeads, forked_delta
from mrsp_engine.linear_attention.head_trade import LinearHeadTrade

__all__ = ["PackedGatedDelta", "pack_gated_delta"]


class PackedGatedDelta(nn.Module):
    """What both classes below add to transformers' layer, whose parameters and submodules they use."""

    num_v_heads: int
    num_k_heads: int
    head_k_dim: int
    head_v_dim: int
    activation: str
    A_log: nn.Parameter
    dt_bias: nn.Parameter
    conv1d: nn.Conv1d
    in_proj_qkv: nn.Module
    in_proj_z: nn.Module
    in_proj_b: nn.Module
    in_proj_a: nn.Module
    norm: nn.Module
    out_proj: nn.Module

    def forward(
        self, hidden_states: Tensor, *args: Any, attention_plan: AttentionPlan | None = None, **kwargs: Any
    ) -> Tensor:
        """Compute a batch as transformers does, or with a plan the own tokens of one packed row: [1, L, D] to the same.

        Raises:
            ValueError: There is a mask, a cache or a second row, none of which a plan allows.
        """
        if attention_plan is None:
            return cast(Tensor, super().forward(hidden_states, *args, **kwargs))
        if (
            hidden_states.shape[0] != 1
            or args
            or kwargs.get("attention_mask") is not None
            or kwargs.get("cache_params")
        ):
            raise ValueError("packed linear attention needs one row without mask or cache")
        own = hidden_states[0]
        mixed_LC, b_LH, a_LH = self.in_proj_qkv(own), self.in_proj_b(own), self.in_proj_a(own)
        gate_LHV = self.in_proj_z(own).unflatten(1, (self.num_v_heads, -1))
        if attention_plan.shards is None:
            read_LHV = self._read(slice(0, self.num_v_heads), mixed_LC, b_LH, a_LH, attention_plan.layout)
        else:
            trade = LinearHeadTrade(shards=attention_plan.shards, num_heads=self.num_v_heads)
            pieces = [
                torch.cat((mixed_LC[:, self._channels(heads)], b_LH[:, heads], a_LH[:, heads]), dim=1)
                for heads in trade.heads
            ]
            whole, heads = trade.to_heads(pieces), trade.heads[attention_plan.shards.group.rank]
            number = heads.stop - heads.start
            mixed_SC, b_Sh, a_Sh = whole.split((whole.shape[1] - 2 * number, number, number), dim=1)
            read_LHV = trade.to_tokens(self._read(heads, mixed_SC, b_Sh, a_Sh, attention_plan.layout))
        normed = self.norm(read_LHV.flatten(0, 1), gate_LHV.flatten(0, 1))
        return cast(Tensor, self.out_proj(normed.unflatten(0, (len(own), -1)).flatten(1)))[None]

    def _read(self, heads: slice, mixed: Tensor, b: Tensor, a: Tensor, layout: PackedLayout) -> Tensor:
        """What all tokens read with some value heads: [S, C of these heads], [S, h] and [S, h] to [S, h, V]."""
        filters, decays, biases = self.conv1d.weight[self._channels(heads), 0], self.A_log[heads], self.dt_bias[heads]
        if not len(decays):
            # This rank's share is empty; the exchanges and parameters stay in the graph, as on all other ranks.
            nothing = (decays + biases + filters[:, 0]).to(mixed.dtype)
            return mixed.reshape(len(mixed), 0, self.head_v_dim) + nothing[:, None]
        first, per_key = self._key_heads(heads).start, self.num_v_heads // self.num_k_heads
        served = torch.arange(heads.start, heads.stop, device=mixed.device) // per_key - first
        delta = DeltaHeads(
            filters=filters,
            activation=self.activation,
            served=served,
            key_channels=self.head_k_dim,
            value_channels=self.head_v_dim,
        )
        decay_Sh = -decays.float().exp() * softplus(a.float() + biases)
        return forked_delta(delta, mixed, decay_Sh, b.sigmoid(), layout)

    def _key_heads(self, heads: slice) -> slice:
        """The key heads that a rank's value heads use."""
        per_key = self.num_v_heads // self.num_k_heads
        return slice(heads.start // per_key, -(-heads.stop // per_key)) if heads.stop > heads.start else slice(0, 0)

    def _channels(self, heads: slice) -> Tensor:
        """Of the convolved channels, those that a rank's value heads use: their queries, keys and values."""
        keys = self._key_heads(heads)
        key_size, value_size = self.head_k_dim, self.head_v_dim
        num_key = self.num_k_heads * key_size
        runs = [
            (keys.start * key_size, keys.stop * key_size),
            (num_key + keys.start * key_size, num_key + keys.stop * key_size),
            (2 * num_key + heads.start * value_size, 2 * num_key + heads.stop * value_size),
        ]
        return torch.cat([torch.arange(*run, device=self.conv1d.weight.device) for run in runs])


class PackedQwen35GatedDelta(PackedGatedDelta, Qwen3_5GatedDeltaNet):
    """The layer of dense models."""


class PackedQwen35MoeGatedDelta(PackedGatedDelta, Qwen3_5MoeGatedDeltaNet):
    """The layer of models with experts."""


_PACKED: dict[type[nn.Module], type[PackedGatedDelta]] = {
    Qwen3_5GatedDeltaNet: PackedQwen35GatedDelta,
    Qwen3_5MoeGatedDeltaNet: PackedQwen35MoeGatedDelta,
}


def pack_gated_delta(model: nn.Module) -> None:
    """Make a model's gated delta layers instances of the classes above, in place; parameters and hooks stay theirs.

    They differ from transformers' by methods alone, so only the class of the instances changes, as `fully_shard` of
    torch does it too.
    """
    for module in model.modules():
        if type(module) in _PACKED:
            module.__class__ = _PACKED[type(module)]
