"""Which data rank computes which groups, and how many ranks share a row: decided by the predicted cost of rows.

The costs are those of the planner (`mrsp_engine.planner.costs`) for the loaded model. A group with all its branches
stays on one data rank. All ranks compute the same division from the same lengths; nothing is exchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from longrl_trainer.config.stages import TrainingConfig
from mrsp_engine.attention.plan import divide_row
from mrsp_engine.attention.split import BACKWARD_PER_FORWARD, AttentionSettings
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import PackedLayout
from mrsp_engine.planner.costs import Sizes, exchanged_bytes, forward_operations, row_split
from mrsp_engine.planner.hardware import HARDWARE, Accelerator
from mrsp_engine.planner.memory import Sharding, Strategy, memory_by_part
from mrsp_engine.planner.shapes import ModelShape

USABLE_SHARE = 0.9
"""Share of a device's memory that a step may fill."""


KEPT_WHOLE = Strategy()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCosts:
    """What a row costs on one machine.

    Attributes:
        shape: The language model.
        hardware: The nominal speed of the device.
        memory_bytes: Memory of the device; None for CPUs, where it isn't divided among processes.
        settings: How ranks divide a row, where it is set by hand.
        item_bytes: Bytes of a number in the model's computations.
        strategy: How memory is saved.
    """

    shape: ModelShape
    hardware: Accelerator
    memory_bytes: float | None
    settings: AttentionSettings
    item_bytes: int
    strategy: Strategy = KEPT_WHOLE

    @classmethod
    def of(cls, policy: Policy, config: TrainingConfig, *, sharding: Sharding = "none") -> "RowCosts":
        """The costs of a loaded model on the device it is on, with the recipe's settings, and so much of it sharded."""
        parallel = config.parallel
        sizes: Any = cast(Any, policy.model).config.get_text_config()
        shape = ModelShape(
            name=policy.name,
            hidden_size=int(sizes.hidden_size),
            num_layers=int(sizes.num_hidden_layers),
            heads=policy.attention_heads,
            intermediate_size=int(sizes.intermediate_size),
            vocab_size=policy.vocab_size,
            is_tied=bool(getattr(sizes, "tie_word_embeddings", False)),
            max_positions=policy.max_positions,
        )
        hardware, memory = HARDWARE["CPU"], None
        if policy.rehearsed_memory_bytes is not None:
            hardware, memory = HARDWARE["H100"], policy.rehearsed_memory_bytes
        elif policy.device.type == "cuda":
            properties = torch.cuda.get_device_properties(policy.device)
            named = (known for name, known in HARDWARE.items() if name in properties.name)
            hardware, memory = next(named, HARDWARE["H100"]), float(properties.total_memory)
        settings = AttentionSettings(head_ranks=parallel.head_ranks, exchange=parallel.exchange)
        strategy = Strategy(
            is_checkpointed=config.activation_checkpointing != "none",
            are_activations_offloaded=config.activation_checkpointing == "offload",
            sharding=sharding,
            is_optimizer_offloaded=config.sharding.offload != "none",
        )
        return cls(
            shape=shape,
            hardware=hardware,
            memory_bytes=memory,
            settings=settings,
            item_bytes=policy.dtype.itemsize,
            strategy=strategy,
        )

    def seconds(self, layout: PackedLayout, sequence_ranks: int = 1) -> float:
        """Forward and backward pass of a row that the given number of ranks share."""
        scored = sum(sum(group.branches) for group in layout.groups)
        linear, attention = forward_operations(self.shape, layout, scored)
        split = row_split(self.shape, layout, sequence_ranks, self.hardware)
        sent, sent_back = exchanged_bytes(self.shape, layout, split, self.item_bytes)
        messages = (0 if sequence_ranks == 1 else 6 * sequence_ranks) * self.shape.num_layers
        return (
            3 * linear / self.hardware.linear_rate / sequence_ranks
            + (1 + BACKWARD_PER_FORWARD) * attention / self.hardware.attention_rate / sequence_ranks
            + (sent + sent_back) / self.hardware.link_bandwidth
            + messages * self.hardware.message_seconds
        )

    def check(self, layout: PackedLayout, sequence_ranks: int) -> None:
        """Refuse a row that these ranks can't share.

        Raises:
            EngineUsageError: The settings are impossible with this model and these ranks, or the row is too short.
        """
        if sequence_ranks > 1:
            divide_row(
                layout,
                self.shape.heads,
                sequence_ranks,
                settings=self.settings,
                item_bytes=self.item_bytes,
                device_type="cpu" if self.memory_bytes is None else "cuda",
            )

    def fits(self, layout: PackedLayout, sequence_ranks: int, num_ranks: int) -> bool:
        """Whether a device can hold a step with this row, by the planner's prediction; always for CPUs."""
        if self.memory_bytes is None:
            return True
        largest = max(layout.groups, key=lambda group: group.total)
        sizes = Sizes(
            num_frames=0,
            frame_pixels=1,
            group_size=len(largest.branches),
            response_tokens=max(largest.branches, default=0),
            prompt_tokens=largest.prompt,
        )
        held = memory_by_part(
            self.shape,
            sizes,
            layout,
            rows_tokens=layout.total,
            sequence_ranks=sequence_ranks,
            all_ranks=num_ranks,
            strategy=self.strategy,
        )
        return sum(held.values()) <= self.memory_bytes * USABLE_SHARE


def choose_sequence_ranks(costs: RowCosts, layouts: Sequence[PackedLayout], num_ranks: int) -> int:
    """The number of ranks per row with which a step of such rows is computed fastest and fits.

    Sharded weights are gathered twice and their gradients scattered once per row. If nothing fits by the prediction,
    all ranks share every row; of equal numbers the smallest wins.
    """
    is_gathered = costs.strategy.sharding == "everything"
    moved = 3.0 * costs.shape.num_parameters * costs.item_bytes if is_gathered else 0.0
    gathered = moved / costs.hardware.link_bandwidth
    best: tuple[float, int] | None = None
    head_ranks = costs.settings.head_ranks or 1
    for ranks in (n for n in range(head_ranks, num_ranks + 1) if num_ranks % n == 0):
        try:
            for layout in layouts:
                costs.check(layout, ranks)
        except EngineUsageError:
            continue
        if not all(costs.fits(layout, ranks, num_ranks) for layout in layouts):
            continue
        seconds = [costs.seconds(layout, ranks) + gathered for layout in layouts]
        shares = divide_by_cost(seconds, num_ranks // ranks)
        slowest = max(sum(seconds[index] for index in share) for share in shares)
        if best is None or slowest < best[0]:
            best = slowest, ranks
    return num_ranks if best is None else best[1]


def divide_by_cost(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Indices of items in shares of about the same cost: the most expensive first, each to the cheapest share.

    The largest share costs at most a third more than in the best division (Graham 1969).
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals = [0.0] * num_shares
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        place = min(range(num_shares), key=lambda share: (totals[share], share))
        shares[place].append(index)
        totals[place] += costs[index]
    return shares
