"""Rewards of pictures."""
