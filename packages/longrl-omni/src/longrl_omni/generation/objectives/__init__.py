"""What reinforcement learning of generation minimises."""
