"""The model `longrl` of lmms-eval: a checkpoint of any family of the engine, answering from stored embeddings.

A distribution of its own, because lmms-eval and the rest of the workspace need different versions of PyAV.
"""

from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["MANIFEST"]

MANIFEST = ModelManifest(model_id="longrl", simple_class_path="lmms_eval_longrl.model.LongRlModel")
"""What lmms-eval finds by the entry point."""
