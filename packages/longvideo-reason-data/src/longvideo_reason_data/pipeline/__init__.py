"""Whole datasets: building and filtering them, on this machine or a Ray cluster."""
