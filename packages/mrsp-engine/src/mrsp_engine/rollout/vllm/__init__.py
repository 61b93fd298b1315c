"""vLLM as the sampler: requests, process, and how workers read stored embeddings."""
