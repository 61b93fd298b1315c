"""The dataset browser: one HTML file that shows what a dataset holds and what was dropped from it."""
