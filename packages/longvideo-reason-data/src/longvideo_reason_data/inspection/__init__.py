"""Looking at a finished dataset: checks, figures and its card."""
