"""Requests to a server that nobody here has to trust: bounded, kept to one address, and without our secrets."""
