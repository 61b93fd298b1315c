"""Building blocks for tests of a family or a backend: exactness, agreement with a sampler, processes as ranks."""
