"""What all training needs: opened models, optimizers, ranks, the scoring of rows, checkpoints."""
