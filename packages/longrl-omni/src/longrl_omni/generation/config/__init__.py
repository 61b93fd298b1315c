"""The settings of reinforcement learning of generation."""
