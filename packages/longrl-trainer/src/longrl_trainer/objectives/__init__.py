"""Pure mathematics of reinforcement: advantages, losses of tokens, weights of responses."""
