"""Inspecting a finished dataset: checks, figures and its card."""
