"""Engines that sample responses to prompts: one interface, vLLM or plain transformers behind it."""

from mrsp_engine.rollout.base import EmbeddingSource, Rollout, RolloutEngine, SamplingSettings, WeightSource

__all__ = ["EmbeddingSource", "Rollout", "RolloutEngine", "SamplingSettings", "WeightSource"]
