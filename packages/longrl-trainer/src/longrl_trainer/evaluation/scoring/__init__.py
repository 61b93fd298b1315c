"""From responses to scores: extraction, accuracy, the scores that benchmarks publish, errors, comparisons."""
