"""Predicts what a GRPO step needs, before anything is loaded: seconds, bytes, and the settings to run it with.

Arithmetic only, without torch: the shapes of a model (`shapes`), what hardware can do (`hardware`), the work of a step
(`costs`), the memory of a rank (`memory`) and the search for settings that fit (`search`). Every formula is in the
docstring of its function.
"""
