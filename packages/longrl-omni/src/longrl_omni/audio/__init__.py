"""Families beside the engine's own: one module and one entry point in the group `mrsp_engine.families` each."""
