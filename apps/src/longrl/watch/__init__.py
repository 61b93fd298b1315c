"""A window into one run: its curves and its responses, live while it goes on and afterwards from its files."""
