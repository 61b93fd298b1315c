"""Starts a recipe on all processes of all nodes, after a look at whether it can run there, and tells how it ended."""
