"""Encode once, refer everywhere: keys that cover everything an embedding depends on, and the store on disk."""

from mrsp_engine.embeddings.key import EmbeddingKey, encoder_fingerprint
from mrsp_engine.embeddings.store import EmbeddingStore, StoreCounters, StoreStats

__all__ = ["EmbeddingKey", "EmbeddingStore", "StoreCounters", "StoreStats", "encoder_fingerprint"]
