"""Measuring a model on questions that no training has seen."""
