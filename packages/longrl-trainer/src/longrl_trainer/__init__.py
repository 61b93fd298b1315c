"""Two-stage training of vision-language models on long videos: CoT-SFT, then GRPO.

The two loops are `sft.train_sft` and `grpo.train_grpo`; `evaluation.evaluate` measures what they reach. Everything
that touches a model's weights, a video's frames or a GPU belongs to `mrsp_engine` and `longvideo_reason_data`.
"""
