"""Engines that sample responses to prompts: one interface, implemented with vLLM and with plain transformers."""

from mrsp_engine.rollout.base import (
    EmbeddingSource,
    Refusal,
    RefusalReason,
    Rollout,
    RolloutEngine,
    SamplingSettings,
    WeightSource,
    require_rollouts,
)

__all__ = [
    "EmbeddingSource",
    "Refusal",
    "RefusalReason",
    "Rollout",
    "RolloutEngine",
    "SamplingSettings",
    "WeightSource",
    "require_rollouts",
]
