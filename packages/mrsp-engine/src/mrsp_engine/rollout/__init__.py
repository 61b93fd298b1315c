"""Engines that sample responses to prompts: one interface, vLLM or plain transformers behind it."""

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
