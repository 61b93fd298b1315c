"""Published benchmarks: their questions, read from the files in which they are published."""
