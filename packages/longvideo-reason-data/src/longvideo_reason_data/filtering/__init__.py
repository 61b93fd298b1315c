"""Which questions stay: rules for their words, near duplicates, leaks, and questions that don't need their video."""
