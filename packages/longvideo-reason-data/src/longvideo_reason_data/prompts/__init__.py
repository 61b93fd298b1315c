"""The texts and pictures that a language model is asked with."""
