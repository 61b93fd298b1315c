"""How samples are drawn, step by step, and what is kept of the steps."""
