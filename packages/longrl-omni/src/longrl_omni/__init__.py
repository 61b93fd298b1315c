"""The trainer's other modalities: audio models and text-only models.

Each is a family of `mrsp_engine` (how a checkpoint becomes a policy) and a medium of `longrl_trainer` (how a question's
file becomes references to embeddings), found through entry points. Nothing below this package depends on it.
"""
