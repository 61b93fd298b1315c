"""What tests of a family or a backend are made of: exactness, agreement with a sampler, processes as ranks."""
