#!/usr/bin/env bash
# diffusers saves a Stable Diffusion 3 pipeline without its T5 encoder, and doesn't load it again.
#
# Guess before the test: the encoder and its tokenizer are optional parts of this pipeline; the index of the saved folder
# says null for both, so that loading gives a pipeline without them.
#
# Behaviour: `from_pretrained` on the folder that `save_pretrained` wrote raises ValueError and lists among the expected
# parts the two that are null in the index; the image encoder, null as well, is no obstacle. Only where both are passed
# again by hand, as None, it loads.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
export HF_HUB_OFFLINE=1
uv venv --quiet --python 3.11
uv pip install --quiet diffusers==0.42.1 transformers==5.19.0 torch==2.13.0 numpy pillow accelerate
cat > pipeline.py <<'PYTHON'
import json
from pathlib import Path

import diffusers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

Path("tokenizer").mkdir()
words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
Path("tokenizer/vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
Path("tokenizer/merges.txt").write_text("#version: 0.2\n")
tokenizer = CLIPTokenizer.from_pretrained("tokenizer", model_max_length=8)
sizes = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 16, "num_hidden_layers": 1}
text = CLIPTextConfig(vocab_size=6, num_attention_heads=2, max_position_embeddings=8, **sizes)
pipeline = StableDiffusion3Pipeline(
    transformer=SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=8,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
    vae=AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8),
    text_encoder=CLIPTextModelWithProjection(text), tokenizer=tokenizer,
    text_encoder_2=CLIPTextModelWithProjection(text), tokenizer_2=tokenizer,
    text_encoder_3=None, tokenizer_3=None,
)
pipeline.save_pretrained("saved")
index = json.loads(Path("saved/model_index.json").read_text())
absent = [name for name, value in index.items() if value == [None, None]]
print(f"diffusers {diffusers.__version__}: null in the index: {', '.join(absent)}")
assert absent == ["feature_extractor", "image_encoder", "text_encoder_3", "tokenizer_3"]
try:
    StableDiffusion3Pipeline.from_pretrained("saved")
except ValueError as error:
    print(f"loaded as it is: ValueError: {str(error).split('expected')[0].strip()} expected …")
    assert "text_encoder_3" in str(error)
else:
    raise AssertionError("it loads")
again = StableDiffusion3Pipeline.from_pretrained("saved", text_encoder_3=None, tokenizer_3=None)
print(f"loaded with None for both: text_encoder_3 is {again.text_encoder_3}")
assert again.text_encoder_3 is None
PYTHON
.venv/bin/python pipeline.py 2> errors.log || { tail -5 errors.log; exit 1; }
