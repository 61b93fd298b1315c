"""vLLM as the sampler: its requests, its process, and how its workers read stored embeddings."""
