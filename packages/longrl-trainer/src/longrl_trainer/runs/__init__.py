"""A run on disk: its folder, its journals, and the bars that show how far it is."""
