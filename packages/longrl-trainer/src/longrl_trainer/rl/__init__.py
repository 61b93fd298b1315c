"""The parts of one GRPO step: groups of judged responses, the update, the metrics."""
