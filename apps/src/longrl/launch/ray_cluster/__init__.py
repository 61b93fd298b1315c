"""A start on a Ray cluster: Ray Train puts one launcher on each node, as Slurm does, and the launchers do the rest."""
