"""Process groups and differentiable exchanges between ranks."""
