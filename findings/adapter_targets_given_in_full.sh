#!/usr/bin/env bash
# From twenty targets on, PEFT writes other names into an adapter's configuration than it was given.
#
# Guess before the test: `target_modules` with the full names of layers is kept as it is, since it decides which layers
# get an adapter wherever `adapter_config.json` is read again.
#
# Behaviour: a list of 19 full names is saved as given. With 20 and more, PEFT looks for the shortest ends of names that
# match these layers and no other layer of this very model, and saves those. Here 21 names of one kind of layer of a
# model of 21 layers become the one end they share, and a configuration that named layers of the text decoder no longer
# says so: put on a larger model with layers of the same ends elsewhere, it adapts those too.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
uv venv --quiet --python 3.11 environment
uv pip install --quiet --python environment/bin/python peft==0.21.2 transformers==5.19.0 torch==2.13.0 torchvision==0.28.0
cat > targets.py <<'PYTHON'
import json
from pathlib import Path

import peft
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Linear(8, 8)


class Decoder(nn.Module):
    def __init__(self, num_layers):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))


class Model(nn.Module):
    def __init__(self, num_layers, has_tower):
        super().__init__()
        self.decoder = Decoder(num_layers)
        if has_tower:
            self.tower = Decoder(2)

    def forward(self, inputs):
        return inputs


print("peft", peft.__version__)
saved = {}
for num_layers in (19, 21):
    given = [f"decoder.layers.{number}.up_proj" for number in range(num_layers)]
    model = peft.get_peft_model(Model(num_layers, has_tower=False), peft.LoraConfig(r=2, target_modules=given))
    model.save_pretrained(f"adapter-{num_layers}")
    saved[num_layers] = json.loads(Path(f"adapter-{num_layers}/adapter_config.json").read_text())["target_modules"]
    print(f"{num_layers} full names given, saved: {sorted(saved[num_layers])[:3]} ({len(saved[num_layers])} in all)")
    assert (sorted(saved[num_layers]) == sorted(given)) == (num_layers == 19)

for num_layers, targets in saved.items():
    model = peft.get_peft_model(Model(num_layers, has_tower=True), peft.LoraConfig(r=2, target_modules=targets))
    in_tower = sum("tower" in name and name.endswith("lora_A.default.weight") for name, _ in model.named_parameters())
    print(f"the saved targets on a model with a tower: {in_tower} layers of the tower get an adapter")
    assert (in_tower == 0) == (num_layers == 19)
PYTHON
environment/bin/python targets.py 2> targets.err
