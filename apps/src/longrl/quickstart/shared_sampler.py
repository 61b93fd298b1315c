"""One sampler for all stages of a process: starting vLLM takes longer than giving it new weights."""

from collections.abc import Callable
from pathlib import Path

from longrl_trainer.config.stages import GrpoConfig
from mrsp_engine.rollout.base import RolloutEngine


class SharedSampler:
    """Opens vLLM when it is first needed; every user gives it the weights to sample with.

    Args:
        config: Settings of the sampler.
        model_folder: A checkpoint of the same shape to start from.
        longest_prompt_tokens: Returns the longest prompt of any stage, once the videos are encoded.
    """

    def __init__(self, config: GrpoConfig, model_folder: Path, longest_prompt_tokens: Callable[[], int]) -> None:
        self._config = config
        self._model_folder = model_folder
        self._longest_prompt_tokens = longest_prompt_tokens
        self._engine: RolloutEngine | None = None

    def open(self) -> RolloutEngine | None:
        """The shared engine; None where every stage should open its own, which is cheap without vLLM."""
        sampler = self._config.sampler
        if sampler.engine != "vllm":
            return None
        if self._engine is None:
            from mrsp_engine.embeddings.store import EmbeddingStore
            from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine

            self._engine = VllmRolloutEngine(
                self._model_folder,
                EmbeddingStore(self._config.model.store),
                max_model_len=self._longest_prompt_tokens() + self._config.max_response_tokens,
                memory_bytes=sampler.memory_bytes,
                max_num_seqs=sampler.max_num_seqs,
                dtype=self._config.dtype,
            )
        return self._engine

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
