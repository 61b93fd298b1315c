"""ZeRO by DeepSpeed (arXiv 1910.02054): optimizer state, gradients and weights spread over ranks."""
