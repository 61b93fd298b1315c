"""The parts of one GRPO step: sampling, groups of judged responses, the update, the metrics."""
