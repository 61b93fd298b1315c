"""Shared by all training: loaded models, optimizers, ranks, the scoring of rows, checkpoints."""
