"""Datasets in the layouts of other programs: Hugging Face datasets, JSON lines, TRL, verl and EasyR1."""
