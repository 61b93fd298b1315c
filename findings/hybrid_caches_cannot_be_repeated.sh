#!/usr/bin/env bash
# transformers' cache of a hybrid model can't be repeated for the samples of a prompt by the method made for it.
#
# Guess before the test: `DynamicCache.batch_repeat_interleave(G)` repeats what every layer keeps, keys and values here,
# the state of the recurrence and of the short convolution there, as it does for models with attention alone.
#
# Behaviour: AttributeError, since layers that keep a state have no such method; nor have they `batch_select_indices`.
# `reorder_cache` with an index that names the prompt G times repeats all of them, and G different next tokens then get
# the logits that each gets behind the whole prompt.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
export HF_HUB_OFFLINE=1
uv venv --quiet --python 3.11
uv pip install --quiet transformers==5.19.0 torch==2.13.0 numpy
cat > repeated.py <<'PYTHON'
import torch
import transformers
from transformers.models.qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5TextConfig

transformers.logging.set_verbosity_error()
kinds = ["linear_attention", "full_attention"]
heads = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
torch.manual_seed(0)
model = Qwen3_5ForCausalLM(
    Qwen3_5TextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, layer_types=kinds, **heads,
    )
).eval()
prompt, following = torch.arange(2, 12)[None], torch.tensor([[20], [21], [22]])
with torch.no_grad():
    for name, argument in (("batch_repeat_interleave", 3), ("batch_select_indices", torch.tensor([0, 0, 0]))):
        cache = model(prompt, use_cache=True).past_key_values
        try:
            getattr(cache, name)(argument)
        except AttributeError as error:
            print(f"transformers {transformers.__version__}: {name}: {error}")
        else:
            raise AssertionError(f"{name} works")
    cache = model(prompt, use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([0, 0, 0]))
    together = model(following, past_key_values=cache).logits[:, -1]
    alone = torch.cat([model(torch.cat([prompt, token[None]], dim=1)).logits[:, -1] for token in following])
    difference = (together - alone).abs().max().item()
print(f"behind reorder_cache the logits differ by {difference:.0e} from those of the whole rows")
assert difference < 1e-5
PYTHON
.venv/bin/python repeated.py 2> errors.log || { tail -5 errors.log; exit 1; }
