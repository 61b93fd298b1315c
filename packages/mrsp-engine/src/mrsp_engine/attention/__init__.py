"""Attention over packed rows: the plan, the computation, and its registration in transformers."""
