"""Multi-modal Reinforcement Sequence Parallelism.

Videos are encoded once and then referred to by name; the prompt that a group of responses shares is computed once; long
rows are split across ranks. A training loop needs `families` (a checkpoint as a `Policy`), `logprobs`
(log-probabilities with gradients), `rollout` (sampling) and `embeddings` (the store). Importing this package imports no
sampler.
"""
