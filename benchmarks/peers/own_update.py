"""This project's update: the group in one row after one prompt, images from stored embeddings.

python own_update.py UPDATE.json REPEATS
"""

import sys
import tempfile
from pathlib import Path

import torch
from measured import Update, measure

from longrl_trainer.objectives.losses import clipped_loss
from longvideo_reason_data.media.image_file import ImageFile
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches

update, repeats = Update.read(Path(sys.argv[1])), int(sys.argv[2])
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as scratch:
    policy = load_policy(update.model, dtype=torch.float32, store=EmbeddingStore(Path(scratch)))
    policy.freeze_vision()
    media = [policy.encode_image(ImageFile.open(path)) for path in update.images]
    prompt = policy.build_prompt(update.question, media)
    assert list(prompt.expanded_ids) == update.prompt_ids, "another prompt"
    branches = [Branch(token_ids=tuple(token_ids)) for token_ids in update.response_ids]

    def compute_loss() -> torch.Tensor:
        """One forward pass of the whole group."""
        scores = score_branches(policy, prompt, branches)
        losses = [
            clipped_loss(logprobs, logprobs.detach(), advantage, clip_low=0.2, clip_high=0.2).losses.sum()
            for logprobs, advantage in zip(scores.logprobs, update.advantages, strict=True)
        ]
        return torch.stack(losses).sum() / update.num_tokens

    measure(compute_loss, policy.model.parameters(), repeats)
