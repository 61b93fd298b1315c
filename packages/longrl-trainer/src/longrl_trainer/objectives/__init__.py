"""Pure mathematics of reinforcement learning: advantages, losses, divergences, importance and response weights."""
