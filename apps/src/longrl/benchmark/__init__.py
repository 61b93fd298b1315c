"""Measurements of the engine: whole steps, the work of one rank of many, and attention alone."""
