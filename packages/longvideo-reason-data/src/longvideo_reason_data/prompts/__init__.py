"""The texts and images in requests to a language model."""
