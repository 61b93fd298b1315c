"""Pure mathematics of reinforcement learning: advantages, token losses, response weights."""
