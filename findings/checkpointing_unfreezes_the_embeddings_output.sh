#!/usr/bin/env bash
# transformers' gradient checkpointing gives the output of a frozen embedding a gradient, also without PEFT.
#
# Guess before the test: only a model with PEFT adapters needs that trick, and only with reentrant checkpointing; a
# model whose embedding and first layers are frozen begins its backward pass at the first layer that is trained.
#
# Behaviour: `gradient_checkpointing_enable()` registers a hook by which the embedding's output requires a gradient,
# whatever is frozen, although the checkpointing is not reentrant. Every frozen layer then recomputes its forward pass
# and computes gradients of its inputs: of a model of four layers of which only the last is trained, all four are
# computed again in the backward pass. After `disable_input_require_grads()` it is one, with the same gradients.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
uv venv --quiet --python 3.11
uv pip install --quiet transformers==5.19.0 torch==2.13.0 numpy
cat > frozen.py <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM


def step(without_hook):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).requires_grad_(False).train()
    layers = model.model.layers
    layers[-1].requires_grad_(True)
    model.gradient_checkpointing_enable()
    if without_hook:
        model.disable_input_require_grads()
    token_ids = torch.arange(8)[None]
    has_gradient = model.get_input_embeddings()(token_ids).requires_grad
    calls = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = model(token_ids).logits.sum()
    num_forward = len(calls)
    loss.backward()
    return has_gradient, len(calls) - num_forward, layers[-1].mlp.up_proj.weight.grad


first, second = step(without_hook=False), step(without_hook=True)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for name, (has_gradient, num_again, _) in (("as enabled", first), ("hook removed", second)):
    print(f"{name}: the embedding's output requires a gradient: {has_gradient}, layers computed again: {num_again}")
assert first[:2] == (True, 4)
assert second[:2] == (False, 1)
assert torch.equal(first[2], second[2])
PYTHON
.venv/bin/python frozen.py 2> stderr
