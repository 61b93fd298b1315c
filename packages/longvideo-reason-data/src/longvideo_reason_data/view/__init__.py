"""The dataset browser: one HTML file that shows what a dataset holds and what was left out of it."""
