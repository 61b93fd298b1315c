"""Two-stage training of vision-language models on long videos: CoT-SFT, then GRPO.

The two loops are `sft.train_sft` and `grpo.train_grpo`; `evaluation.evaluate` measures the result. Everything that
touches a model's weights, a video's frames or a GPU is in `mrsp_engine` and `longvideo_reason_data`.
"""
