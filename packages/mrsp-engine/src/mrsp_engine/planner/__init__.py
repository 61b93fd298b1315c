"""What a step of GRPO will take, before anything is loaded: seconds, bytes, and the settings to run it with.

Arithmetic only, without torch: the shapes of a model (`shapes`), what hardware can do (`hardware`), the work of a step
(`costs`), what a rank has to hold (`memory`) and the search for settings that fit (`search`). Every formula stands in
the docstring of its function.
"""
