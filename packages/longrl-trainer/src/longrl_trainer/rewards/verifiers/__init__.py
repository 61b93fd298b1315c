"""Rewards that compare an answer with the right one by a rule, one module per type of question."""
