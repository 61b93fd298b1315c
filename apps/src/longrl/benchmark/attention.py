"""`longrl benchmark attention`: the packed row's few calls against one dense causal call over as many tokens.

The dense call computes more pairs, because it lets responses attend to each other. Rates count the pairs that each call
has to compute, so they show how well the operators are used; seconds show the total cost.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longrl.benchmark.measurement import (
    AttentionRates,
    describe_machine,
    measure_matrix_rate,
    measure_packed_attention,
    random_heads,
)
from longrl.benchmark.ranks import open_ranks
from longrl.errors import AppUsageError
from longrl_trainer.durable import write_json
from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.planner.checkpoints import find_shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure_attention(
    output: Path,
    *,
    prompt_tokens: tuple[int, ...],
    group_size: int,
    response_tokens: int,
    model: str,
    repeats: int,
    device: str,
    dtype: str,
) -> None:
    """Measure rows of several lengths with a model's heads, print them and write `output`."""
    if min((*prompt_tokens, group_size, response_tokens, repeats), default=0) < 1:
        raise AppUsageError("--prompt-tokens, --group-size, --response-tokens and --repeats: expected 1 or more")
    if dtype not in DTYPES:
        raise AppUsageError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    shape = find_shape(model)
    with open_ranks(device) as (own, _):
        matrix_rate = measure_matrix_rate(own, DTYPES[dtype])
        rows: list[dict[str, Any]] = []
        for prompt in prompt_tokens:
            layout = PackedLayout((GroupLengths(prompt, (response_tokens,) * group_size),))
            packed = measure_packed_attention(layout, shape.heads, device=own, dtype=DTYPES[dtype], repeats=repeats)
            dense = _measure_dense(layout.total, shape.heads, own, DTYPES[dtype], repeats)
            for kind, rates in (("packed", packed), ("dense", dense)):
                rows.append(
                    {
                        "kind": kind,
                        "prompt_tokens": prompt,
                        "response_tokens": response_tokens,
                        "group_size": group_size,
                        **asdict(rates),
                        "forward_share": rates.forward_rate / matrix_rate,
                        "backward_share": rates.backward_rate / matrix_rate,
                    }
                )
        results = {"machine": describe_machine(own), "heads": asdict(shape.heads), "matrix_rate": matrix_rate}
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, results | {"dtype": dtype, "rows": rows})
    print(f"matrix rate {matrix_rate / 1e9:.1f} GFLOP/s")
    for row in rows:
        print(
            f"{row['prompt_tokens']:>8} prompt tokens, {row['kind']:<6}: forward {row['forward_seconds']:.4f} s "
            f"({row['forward_share']:.0%} of the matrix rate), backward {row['backward_seconds']:.4f} s "
            f"({row['backward_share']:.0%})"
        )
    print(output)


def _measure_dense(
    num_tokens: int, heads: AttentionHeads, device: torch.device, dtype: torch.dtype, repeats: int
) -> AttentionRates:
    query, key, value = random_heads(num_tokens, heads, device, dtype)

    def forward() -> Tensor:
        return functional.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, enable_gqa=True
        )

    num_pairs = num_tokens * (num_tokens + 1) // 2
    return AttentionRates.measure(forward, (query, key, value), heads, num_pairs=num_pairs, repeats=repeats)
