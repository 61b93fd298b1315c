"""Encode once, refer everywhere: keys that cover everything an embedding depends on, and the store."""

from mrsp_engine.embeddings.digests import FileDigests
from mrsp_engine.embeddings.key import EmbeddingKey, StoredContent, encoder_fingerprint
from mrsp_engine.embeddings.store import EmbeddingStore, StoreCounters, StoreLimits, StoreStats

__all__ = [
    "EmbeddingKey",
    "EmbeddingStore",
    "FileDigests",
    "StoreCounters",
    "StoreLimits",
    "StoreStats",
    "StoredContent",
    "encoder_fingerprint",
]
