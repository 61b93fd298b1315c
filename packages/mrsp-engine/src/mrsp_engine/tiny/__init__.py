"""Small random checkpoints of every family, with the real classes, processors and tokenizers."""
