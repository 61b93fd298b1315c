"""The trainer's other modalities: a model that hears, a model that only reads.

Each is a family of `mrsp_engine` (how a checkpoint becomes a policy) and a medium of `longrl_trainer` (how the file a
question is about becomes references to embeddings), found through entry points. Nothing below this package knows it.
"""
