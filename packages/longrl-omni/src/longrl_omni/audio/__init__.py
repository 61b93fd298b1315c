"""Families in addition to the engine's: each one module and one entry point in the group `mrsp_engine.families`."""
