#!/usr/bin/env bash
# A model saved by transformers 5 computes other positions in transformers 4, and neither says so.
#
# Guess before the test: a checkpoint written by 5.19 either keeps the key `rope_theta` beside the new
# `rope_parameters`, as files on hubs have it, or 4.57 stops at a configuration that it can't understand.
#
# Behaviour: 5.19 writes `rope_parameters` alone. 4.57 takes that for an unknown extra key and fills in its default,
# 10,000 in place of 1,000,000. All weights load, none is missing or unexpected, no line is printed about it, and logits
# differ.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
cat > model.py <<'PYTHON'
import json, sys
import torch, transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=32768, tie_word_embeddings=False)
ROPE = {"rope_type": "default", "rope_theta": 1e6}
MODELS = {
    "qwen2": (Qwen2ForCausalLM, lambda: Qwen2Config(**SIZES, rope_parameters=ROPE)),
    "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**SIZES, head_dim=32, rope_parameters=ROPE)),
}
print("transformers", transformers.__version__)
results = {}
for name, (model_class, create_config) in MODELS.items():
    if sys.argv[1] == "write":
        torch.manual_seed(0)
        model = model_class(create_config()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5.0)
        model.save_pretrained(name)
        problems = 0
    else:
        model, report = model_class.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
        problems = sum(len(entries) for entries in report.values())
    text = model.config.get_text_config()
    theta = text.rope_theta if hasattr(text, "rope_theta") else text.rope_parameters["rope_theta"]
    with torch.no_grad():
        logits = model(input_ids=torch.arange(60)[None]).logits.double()
    results[name] = {"theta": theta, "problems": problems, "logits": logits.flatten().tolist()}
    print(f"  {name}: theta {theta:g}, missing or unexpected weights {problems}")
json.dump(results, open(f"{sys.argv[1]}.json", "w"))
PYTHON
for pair in write:5.19.0 read:4.57.3; do
    uv venv --quiet --python 3.11 "${pair%%:*}"
    uv pip install --quiet --python "${pair%%:*}/bin/python" "transformers==${pair##*:}" torch==2.13.0 torchvision==0.28.0 pillow
    "${pair%%:*}/bin/python" model.py "${pair%%:*}" 2> "${pair%%:*}.err"
done
echo "lines about rotary positions on the error stream of 4.57.3: $(grep -i -c rope read.err || true)"
[ "$(grep -i -c rope read.err || true)" = 0 ]
write/bin/python - <<'PYTHON'
import json
written, read = (json.load(open(name)) for name in ("write.json", "read.json"))
for name, before in written.items():
    gap = max(abs(a - b) for a, b in zip(before["logits"], read[name]["logits"]))
    print(f"{name}: theta {before['theta']:g} became {read[name]['theta']:g}, largest difference of a logit {gap:.3g}")
    assert read[name]["theta"] == 10_000 and gap > 1e-3 and read[name]["problems"] == 0, name
PYTHON
