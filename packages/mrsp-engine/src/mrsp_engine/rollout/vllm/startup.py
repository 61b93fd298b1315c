"""Starting vLLM in this process, and cleaning up after a failed start."""

from typing import Any

from mrsp_engine.errors import EngineError
from mrsp_engine.rollout.vllm.linear_layers import refuse_linear_layers
from mrsp_engine.rollout.vllm.long_media import allow_long_media
from mrsp_engine.rollout.vllm.process import confined_import
from mrsp_engine.rollout.vllm.requests import SamplerCheckpoint
from mrsp_engine.rollout.vllm.rotary import SamplerRotary

__all__ = ["first_line", "leave_process_group", "start"]


def start(checkpoint: SamplerCheckpoint, rotary: SamplerRotary, options: dict[str, Any]) -> Any:
    """Start the engine, with the sizes that the checkpoint's media require.

    Raises:
        EngineUsageError: The model has layers that vLLM can't compute on this machine with these options.
        EngineError: Its rotary positions differ from the trainer's.
    """
    from vllm import LLM
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        refuse_linear_layers(checkpoint.config, dtype=options["dtype"], has_adapter=bool(options.get("enable_lora")))
    options["enable_sleep_mode"] = current_platform.is_sleep_mode_available()  # not on CPUs
    if not allow_long_media(checkpoint.architecture):
        # A medium has to fit into the encoder cache, which is then as large as a batch.
        options["max_num_batched_tokens"] = max(options["max_num_batched_tokens"], options["max_model_len"])
    llm = LLM(model=str(checkpoint.folder), hf_overrides=rotary.override, **options)
    try:
        llm.apply_model(rotary.check)
    except EngineError:
        llm.llm_engine.engine_core.shutdown()
        raise
    return llm


def leave_process_group() -> None:
    """Clean up after a failed start; otherwise the next engine would mistake vLLM's process group for the trainer's."""
    with confined_import():
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def first_line(error: BaseException) -> str:
    """One line for an error in vLLM."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
