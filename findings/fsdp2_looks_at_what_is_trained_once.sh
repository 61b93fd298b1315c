#!/usr/bin/env bash
# FSDP2 decides at its first forward pass, and for good, in which dtype a unit's gradients are reduced.
#
# Guess before the test: what requires a gradient counts when the backward pass runs. A reference pass with adapters
# switched off and frozen, as PEFT's `enable_adapters(False)` leaves them, before the first training step changes nothing
# about that step.
#
# Behaviour: in a unit of a frozen bfloat16 layer and a float32 adapter, with `MixedPrecisionPolicy(param_dtype=bfloat16,
# reduce_dtype=float32)`, the adapter's gradient is float32 if it required one in the very first pass, even one without
# gradients. If it was frozen in that pass, `reduce_dtype` is not applied later: the first backward pass raises a
# RuntimeError, because a bfloat16 gradient can't be given to the float32 weight.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
uv venv --quiet --python 3.11
uv pip install --quiet torch==2.13.0 numpy
cat > adapted.py <<'PYTHON'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.adapter = nn.Linear(4, 4, bias=False, dtype=torch.float32)

    def forward(self, states):
        return self.base(states) + self.adapter(states)


def step_after(first_pass):
    layers = nn.Sequential(Adapted(), Adapted())
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mp_policy=precision)
    fully_shard(layers, mp_policy=precision)
    states = torch.ones(2, 4, dtype=torch.bfloat16)
    adapters = [layer.adapter for layer in layers]
    for adapter in adapters:
        adapter.requires_grad_(first_pass == "trained")
    with torch.no_grad():
        layers(states)
    for adapter in adapters:
        adapter.requires_grad_(True)
    try:
        layers(states).sum().backward()
    except RuntimeError as error:
        return "RuntimeError, " + str(error).partition(".")[0]
    return f"gradients in {adapters[0].weight.grad.dtype}"


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for first_pass in ("trained", "frozen"):
    outcome = step_after(first_pass)
    print(f"torch {torch.__version__}, adapters {first_pass} in the first pass: {outcome}")
    assert outcome == "gradients in torch.float32" if first_pass == "trained" else outcome.startswith("RuntimeError")
dist.destroy_process_group()
PYTHON
.venv/bin/python adapted.py 2> stderr
