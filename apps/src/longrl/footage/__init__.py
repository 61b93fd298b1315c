"""One's own videos: recipes for them, and the whole pipeline from their folder to a report."""
