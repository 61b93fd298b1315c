"""Reinforcement learning of models that generate pictures by flow matching."""
