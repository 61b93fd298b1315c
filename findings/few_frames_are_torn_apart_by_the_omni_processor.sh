#!/usr/bin/env bash
# transformers' processor of Qwen2.5-Omni tears a group of frames apart where a group lasts longer than a chunk.
#
# Guess before the test: with sound in a film, pictures and sound alternate in chunks of two seconds. A group of two
# frames that stands for four seconds stays whole, and the sound of its four seconds follows.
#
# Behaviour: the first group stays whole; each following one is cut into its first token and the rest, with two seconds of
# sound in between, and the sound before a group is older than that. The processor moves on by one chunk per token instead
# of to the chunk in which the token lies. Groups of at most two seconds are in order, so nothing is seen of it at usual
# frame rates, only with few frames of a long film.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
export HF_HUB_OFFLINE=1
uv venv --quiet --python 3.11
uv pip install --quiet transformers==5.19.0 torch==2.13.0 torchvision==0.28.0 numpy pillow
cat > order.py <<'PYTHON'
from itertools import groupby

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

markers = {
    f"{medium}_token": f"<|{medium.upper()}|>" for medium in ("image", "audio", "video")
} | {
    f"{sense}_{end}_token": f"<|{sense}_{end}|>" for sense in ("vision", "audio") for end in ("bos", "eos")
}
inner = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", pad_token="?", extra_special_tokens=markers)
tokenizer.add_special_tokens({"additional_special_tokens": list(markers.values())}, replace_extra_special_tokens=False)
processor = Qwen2_5OmniProcessor(
    Qwen2VLImageProcessor(), Qwen2VLVideoProcessor(), WhisperFeatureExtractor(feature_size=128), tokenizer
)


def order(seconds_per_group: float, num_groups: int) -> str:
    """Runs of pictures (v) and sound (a) of a film of 56 x 56 pixels: four tokens a group, 25 a second of sound."""
    num_sounds = int(25 * seconds_per_group * num_groups)
    (text,) = processor.replace_multimodal_special_tokens(
        ["<|vision_bos|><|VIDEO|><|vision_eos|>"],
        iter([num_sounds]), iter([]), iter([torch.tensor([num_groups, 4, 4])]), iter([seconds_per_group]),
        use_audio_in_video=True, position_id_per_seconds=25, seconds_per_chunk=2.0,
    )
    for marker in ("vision_bos", "vision_eos", "audio_bos", "audio_eos"):
        text = text.replace(f"<|{marker}|>", "")
    kinds = text.replace("<|VIDEO|>", "v").replace("<|AUDIO|>", "a")
    assert set(kinds) == {"v", "a"}
    return " ".join(f"{len(list(run))}{kind}" for kind, run in groupby(kinds))


whole, torn = order(2.0, 3), order(4.0, 3)
print(f"transformers {transformers.__version__}, three groups of 2 s: {whole}")
print(f"transformers {transformers.__version__}, three groups of 4 s: {torn}")
assert whole == "4v 50a 4v 50a 4v 50a"
assert torn == "4v 50a 1v 50a 3v 50a 1v 50a 3v 100a"
PYTHON
.venv/bin/python order.py
