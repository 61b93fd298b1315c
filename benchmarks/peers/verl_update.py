"""verl's update with its prefix grouper, which computes a prompt of text once for all responses.

    python verl_update.py UPDATE.json REPEATS

verl's own wrapper passes masks of shape [B, S], which only flash-attn takes. The one here differs in the masks alone.

Shapes: P prompt tokens, R response tokens, S both.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from measured import Update, measure
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.trainer.ppo.prefix_grouper_utils import build_pg_from_micro_batch, pg_forward
from verl.workers.config import ActorConfig

update, repeats = Update.read(Path(sys.argv[1])), int(sys.argv[2])
torch.set_num_threads(1)
attend = ALL_ATTENTION_FUNCTIONS["sdpa"]


def attend_grouped(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, prefix_grouper: Any = None, **options: Any
) -> Any:
    """Prompts by themselves, causally; responses with their prompts before them."""
    if prefix_grouper is None:
        return attend(module, query, key, value, mask, **options)

    def attend_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        num_queries, num_keys = query.shape[2], key.shape[2]
        mask_RS = None
        if num_queries != num_keys:
            mask_RS = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)[None, None]
        return attend(module, query, key, value, mask_RS, **options)[0]

    return prefix_grouper.forward(attend_one, query, key, value), None


ALL_ATTENTION_FUNCTIONS["sdpa"] = attend_grouped
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(update.model, dtype=torch.float32).train()
model.model.visual.requires_grad_(False)
group = len(update.response_ids)
responses = torch.tensor(update.response_ids)
mask = torch.ones_like(responses)
advantages = torch.tensor(update.advantages)[:, None].expand_as(responses)
batch = {
    "prompts": torch.tensor([update.prompt_ids] * group),
    "responses": responses,
    "response_mask": mask,
    "uid": ["one"] * group,
}
unused_id = model.config.get_text_config().vocab_size - 1
config = ActorConfig(
    strategy="fsdp", rollout_n=group, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2, clip_ratio_high=0.2
)
config.global_batch_info.update({"dp_size": 1, "batch_num_tokens": update.num_tokens})


def compute_loss() -> torch.Tensor:
    """One forward pass of the whole group."""
    grouper, input_ids, attention_mask, position_ids, completions, completion_mask = build_pg_from_micro_batch(
        batch, pad_token_id=unused_id
    )
    logprobs, _, _ = pg_forward(
        model, grouper, input_ids, attention_mask, position_ids[None].expand(3, -1, -1), completions, completion_mask
    )
    loss, _ = compute_policy_loss_vanilla(logprobs.detach(), logprobs, advantages, mask, "token-mean", config)
    return loss


measure(compute_loss, model.parameters(), repeats)
