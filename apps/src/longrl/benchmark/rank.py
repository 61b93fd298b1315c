"""`longrl benchmark rank`: the work of one rank of many on one device.

A language model with random weights and a public checkpoint's shape runs one rank's part of a packed row, forward,
backward and scoring, among simulated ranks (`stand_in`). As layers are alike, fewer of them may be measured; the whole
model's time is then extrapolated from the layers' time, plus the rest.

Shape legend: L own tokens, D hidden size, N scored tokens.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from longrl.benchmark.attention import DTYPES
from longrl.benchmark.measurement import PeakMemory, describe_machine, finish
from longrl.benchmark.ranks import open_ranks
from longrl.benchmark.stand_in import StandInGroup, random_row, stand_in_ranks
from longrl.errors import AppUsageError
from longrl_trainer.durable import write_json
from mrsp_engine.attention.plan import AttentionPlan, plan_attention
from mrsp_engine.attention.registration import register_attention
from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.planner.checkpoints import find_shape
from mrsp_engine.planner.costs import Sizes, exchanged_bytes
from mrsp_engine.planner.shapes import ModelShape
from mrsp_engine.row_scorer import token_logprobs

LOGIT_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """What to measure.

    Attributes:
        model: Name or folder of a checkpoint, whose language model's shape is used.
        num_layers: Number of layers to measure; all if None.
        frames: Numbers of frames.
        frame_pixels: Pixels of a frame.
        group_size: Responses.
        response_tokens: Tokens of each.
        num_ranks: Ranks N that share the row.
        rank: The rank to measure.
        head_ranks: Ranks that split the heads; chosen by the engine if None.
        repeats: Number of passes; the median is reported.
        device: `auto`, `cpu` or `cuda`.
        dtype: Type of the weights.
        checkpointing: Recompute activations in the backward pass.
    """

    model: str
    num_layers: int | None
    frames: tuple[int, ...]
    frame_pixels: int
    group_size: int
    response_tokens: int
    num_ranks: int
    rank: int
    head_ranks: int | None
    repeats: int
    device: str
    dtype: str
    checkpointing: bool

    def __post_init__(self) -> None:
        counts = ("group_size", "response_tokens", "num_ranks", "repeats", "frame_pixels")
        for name, value in [(name, getattr(self, name)) for name in counts] + [("num_layers", self.num_layers or 1)]:
            if value < 1:
                raise AppUsageError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
        if self.dtype not in DTYPES:
            raise AppUsageError(f"--dtype {self.dtype}: expected one of {', '.join(DTYPES)}")


def measure_rank(settings: RankSettings, output: Path) -> None:
    """Measure, print and write `output`."""
    shape = find_shape(settings.model)
    with (
        open_ranks(settings.device) as (device, _),
        stand_in_ranks(settings.rank, settings.num_ranks) as (group, ranks),
    ):
        model = _build(shape, settings, device)
        rows: list[dict[str, Any]] = []
        for frames in settings.frames:
            sizes = Sizes.of(
                shape,
                num_frames=frames if shape.vision else 0,
                frame_pixels=settings.frame_pixels,
                group_size=settings.group_size,
                response_tokens=settings.response_tokens,
            )
            _, layout = sizes.rows("shared")
            plan = plan_attention(
                layout,
                shape.heads,
                group=group,
                settings=AttentionSettings(head_ranks=settings.head_ranks),
                device=device,
                dtype=DTYPES[settings.dtype],
            )
            rows.append({"frames": frames} | asdict(sizes) | _measure_row(model, shape, plan, sizes, ranks, settings))
            print(_describe(rows[-1]))
        machine = describe_machine(device)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": machine, "model": shape.name, "settings": asdict(settings), "rows": rows})
    print(output)


def _build(shape: ModelShape, settings: RankSettings, device: torch.device) -> Any:
    """The language model with random weights, in Qwen2's architecture, which all these shapes have or are close to."""
    config_class: Any = Qwen2Config  # its signature lacks the head size
    config = config_class(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=settings.num_layers or shape.num_layers,
        num_attention_heads=shape.heads.query,
        num_key_value_heads=shape.heads.key,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=shape.is_tied,
        head_dim=shape.heads.channels,
    )
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=register_attention(), dtype=DTYPES[settings.dtype]
        )
    if settings.checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    return model


def _measure_row(
    model: Any,
    shape: ModelShape,
    plan: AttentionPlan,
    sizes: Sizes,
    ranks: StandInGroup,
    settings: RankSettings,
) -> dict[str, Any]:
    if plan.shards is None:
        raise AppUsageError(f"--ranks {settings.num_ranks}: expected 2 or more")
    device, own = model.device, plan.shards.own_tokens
    embeddings = random_row(len(own), shape.hidden_size, device, DTYPES[settings.dtype])
    num_scored = -(-sizes.scored_tokens // settings.num_ranks)
    seconds: list[tuple[float, float, float]] = []
    peak, sent = None, 0
    for _ in range(settings.repeats + 1):  # the first one warms up
        memory, before = PeakMemory(device), ranks.sent_bytes
        seconds.append(_pass(model, embeddings.requires_grad_(), own, plan, num_scored))
        sent, peak = ranks.sent_bytes - before, memory.read()
        model.zero_grad()
    forward, backward, scoring = (median(part) for part in zip(*seconds[1:], strict=True))
    num_layers = int(model.config.num_hidden_layers)
    factor = shape.num_layers / num_layers
    _, layout = sizes.rows("shared")
    item_bytes = DTYPES[settings.dtype].itemsize
    sent_forward, sent_back = exchanged_bytes(shape, layout, plan.shards.split, item_bytes)
    return {
        "ranks": settings.num_ranks,
        "rank": settings.rank,
        "split": asdict(plan.shards.split),
        "own_tokens": len(own),
        "layers_measured": num_layers,
        "seconds_forward": forward,
        "seconds_backward": backward,
        "seconds_scoring": scoring,
        "seconds_whole_model": (forward + backward) * factor + scoring,
        "peak_bytes": peak,
        "sent_bytes": sent,
        "sent_bytes_whole_model": sent * factor,
        "planned_sent_bytes": ((2 if settings.checkpointing else 1) * sent_forward + sent_back) / factor,
    }


def _pass(
    model: Any, embeddings: Tensor, own: Tensor, plan: AttentionPlan, num_scored: int
) -> tuple[float, float, float]:
    """Seconds of forward, of backward, and of scoring this rank's share of the responses, in both directions."""
    device: torch.device = model.device
    started = _now(device)
    output = model.model(
        inputs_embeds=embeddings[None],
        position_ids=own[None].to(device),
        attention_mask={"full_attention": None},
        use_cache=False,
        attention_plan=plan,
    )
    hidden: Tensor = output.last_hidden_state[0]
    forward_done = _now(device)
    head: nn.Module = model.lm_head
    chosen = hidden.detach()[torch.arange(num_scored, device=device) % hidden.shape[0]].requires_grad_()
    targets = torch.zeros(num_scored, dtype=torch.int64, device=device)
    logprobs, _ = token_logprobs(chosen, targets, head, chunk_tokens=LOGIT_TOKENS)
    logprobs.sum().backward()
    scoring_done = _now(device)
    hidden.backward(torch.full_like(hidden, 1e-3))
    return forward_done - started, _now(device) - scoring_done, scoring_done - forward_done


def _now(device: torch.device) -> float:
    finish(device)
    return time.perf_counter()


def _describe(row: dict[str, Any]) -> str:
    split, peak = row["split"], row["peak_bytes"]
    return (
        f"{row['frames']} frames, {row['prompt_tokens']} prompt tokens, rank {row['rank']} of {row['ranks']} "
        f"({split['head_ranks']} by heads × {split['token_ranks']} by tokens), {row['layers_measured']} layers: "
        f"forward {row['seconds_forward']:.3f} s, backward {row['seconds_backward']:.3f} s, scoring "
        f"{row['seconds_scoring']:.3f} s, whole model {row['seconds_whole_model']:.2f} s; peak "
        f"{'-' if peak is None else f'{peak / 1e9:.2f} GB'}, would send {row['sent_bytes'] / 1e6:.1f} MB"
    )
