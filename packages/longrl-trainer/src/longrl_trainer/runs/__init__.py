"""A run on disk: its folder, its journals, and progress bars."""
