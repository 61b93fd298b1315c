"""TRL's update, `GRPOTrainer._compute_loss`: all responses in one batch, each with the whole prompt before it.

    python trl_update.py UPDATE.json REPEATS [best]

`best` switches off what costs time and only saves memory here: activation checkpointing.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measured import Update, measure
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer

update, repeats, is_best = Update.read(Path(sys.argv[1])), int(sys.argv[2]), "best" in sys.argv
torch.set_num_threads(1)
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(update.model, dtype=torch.float32)
model.model.visual.requires_grad_(False)
processor = AutoProcessor.from_pretrained(update.model)
with tempfile.TemporaryDirectory() as scratch:
    options: dict[str, Any] = {"gradient_checkpointing": False} if is_best else {}
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "none"}]),
        args=GRPOConfig(
            output_dir=scratch,
            use_cpu=True,
            bf16=False,
            beta=0.0,
            loss_type="dapo",
            num_generations=len(update.response_ids),
            per_device_train_batch_size=len(update.response_ids),
            report_to="none",
            **options,
        ),
    )
trainer.current_gradient_accumulation_steps = 1
group = len(update.response_ids)
prompt_ids, completion_ids = torch.tensor([update.prompt_ids] * group), torch.tensor(update.response_ids)
inputs: dict[str, Any] = {
    "prompt_ids": prompt_ids,
    "prompt_mask": torch.ones_like(prompt_ids),
    "completion_ids": completion_ids,
    "completion_mask": torch.ones_like(completion_ids),
    "advantages": torch.tensor(update.advantages),
    "num_items_in_batch": torch.tensor(update.num_tokens),
}
if update.images:
    shown = processor.image_processor([Image.open(path) for path in update.images], return_tensors="pt")
    is_image = (prompt_ids == model.config.image_token_id).long()
    inputs |= {
        "pixel_values": shown["pixel_values"].repeat(group, 1),
        "image_grid_thw": shown["image_grid_thw"].repeat(group, 1),
        "num_images": [len(update.images)] * group,
        "mm_token_type_ids": torch.cat([is_image, torch.zeros_like(completion_ids)], dim=1),
    }
trained = trainer.model.train()
if not is_best:
    trained.gradient_checkpointing_enable()
measure(lambda: trainer._compute_loss(trained, inputs), trained.parameters(), repeats)
