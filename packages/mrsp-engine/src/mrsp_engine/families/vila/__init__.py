"""The VILA family (VILA, NVILA, LongVILA): SigLIP, a projector and Qwen2, from the published folder layout."""
