"""Models that generate, and how the loop calls them."""
