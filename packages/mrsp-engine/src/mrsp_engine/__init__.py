"""Multi-modal Reinforcement Sequence Parallelism.

Videos are encoded once and referred to ever after; the prompt a group of responses shares is computed once; long rows
are split over ranks. What a loop needs is in `families` (a checkpoint as a `Policy`), `logprobs` (scores with
gradients), `rollout` (sampling) and `embeddings` (the store). Importing this package imports no sampler.
"""
