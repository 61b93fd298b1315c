"""Writing and reading checkpoint folders, complete or not at all, without transformers' console output.

What transformers opens is looked at before (`CheckpointFolder.admit`), and what it would build is weighed: by itself it
follows links and lists of files anywhere, reads pickles where there are no safetensors, asks on standard input whether
to run code that a tokenizer names, and builds a model of any size.

The module is independent of families.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from longrl_files.messages import visible
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.config_values import refuse_wrong_sizes
from mrsp_engine.families.weight_slices import build_untouched, unread_models
from mrsp_engine.rotary import refuse_rotary

BuiltT = TypeVar("BuiltT")

_GENERATION_NAME = "generation_config.json"

_without_weights: ContextVar[Callable[[], AbstractContextManager[object]] | None]
_without_weights = ContextVar("without_weights", default=None)


@contextmanager
def without_weights(surroundings: Callable[[], AbstractContextManager[object]]) -> Generator[None]:
    """Within the block models are built from their configurations alone, and no file of weights is opened.

    Args:
        surroundings: Makes what is in force while they are built, such as a mode in which tensors have no numbers.
    """
    token = _without_weights.set(surroundings)
    try:
        yield
    finally:
        _without_weights.reset(token)


def build_without_weights(build: Callable[[], BuiltT], dtype: torch.dtype) -> BuiltT | None:
    """What `build` makes with weights of a type, if models are built without weights now; otherwise None."""
    surroundings = _without_weights.get()
    if surroundings is None:
        return None
    with _making(dtype), surroundings():
        return build()


@contextmanager
def _making(dtype: torch.dtype) -> Generator[None]:
    """Make weights of a type; a later conversion would also affect tables that stay in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def place(model: Any, device: torch.device) -> Any:
    """The model on a device, for evaluation.

    One that is there already is left alone, as it may have no numbers; and one that isn't read yet is moved later.
    """
    is_there = next(model.parameters()).device == device or bool(unread_models())
    return (model if is_there else model.to(device)).eval()


@contextmanager
def without_progress_bars() -> Generator[None]:
    """Disable transformers' own progress bars; the caller's setting is restored afterwards."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def without_reports() -> Generator[None]:
    """Keep transformers from printing what no user has to know, such as weights that are refused in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def require_empty(folder: Path) -> None:
    """Refuse to overwrite anything with a new model.

    Raises:
        EngineUsageError: The folder isn't empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EngineUsageError(f"{folder}: exists and is not an empty folder; choose another folder for the model")


def load_model(
    folder: Path,
    model_type: str,
    *,
    model_class: Any,
    dtype: torch.dtype,
    attention: Any,
    allow_pickle_weights: bool = False,
) -> Any:
    """Load a transformers model, complete or not at all.

    Args:
        folder: The checkpoint.
        model_type: Named in messages.
        model_class: The transformers class.
        dtype: Type of the weights.
        attention: `attn_implementation` for transformers, one name or one per part.
        allow_pickle_weights: Read weights from a pickle where there are no safetensors; nothing but tensors is read
            from it (`weights_only` of torch).

    Raises:
        EngineUsageError: The folder is not a complete checkpoint of this type, has rotary positions that no sampler
            can reproduce, or asks for more than its files hold or this machine can.
    """
    checkpoint = CheckpointFolder(folder)
    checkpoint.admit(allow_pickle_weights=allow_pickle_weights)
    with refuse_broken(folder, model_type):
        refuse_rotary(folder / "config.json", checkpoint.read("config.json"))
        config = model_class.config_class.from_pretrained(str(folder), local_files_only=True)
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            if part is not None:
                part.dtype = dtype  # by which transformers makes some parts
        model = build_without_weights(lambda: _build(model_class, config, attention), dtype)
        if model is not None:
            return model
        stored = checkpoint.count_weights()
        refuse_wrong_sizes(folder / "config.json", config.to_dict(), stored=stored, number_bytes=dtype.itemsize)
        unread = unread_models()
        if unread is not None and stored is not None and model_class.can_generate():
            with _making(dtype):
                unread.append(build_untouched(lambda: _build(model_class, config, attention)))
            # Where transformers finds them, too.
            places: dict[str, Any] = {}
            if not checkpoint.files.has(_GENERATION_NAME):
                places = {"config_file_name": "config.json", "_from_model_config": True}
            settings = GenerationConfig.from_pretrained(str(folder), local_files_only=True, **places)
            cast(Any, unread[-1]).generation_config = settings
            return unread[-1]
    with refuse_broken(folder, model_type), without_progress_bars(), without_reports():
        model, report = cast(
            tuple[Any, dict[str, Any]],
            model_class.from_pretrained(
                str(folder),
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported, and refused below
                local_files_only=True,
                use_safetensors=stored is not None or not allow_pickle_weights,
                weights_only=True,
            ),
        )
    # transformers silently fills missing weights with random values; such a checkpoint is not usable.
    mismatched = (key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"])
    lacking = sorted(str(key) for key in (*report["missing_keys"], *mismatched))
    if lacking:
        raise EngineUsageError(
            f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; "
            "the checkpoint is incomplete, set another model folder"
        )
    return model


def _build(model_class: Any, config: Any, attention: Any) -> Any:
    """A model of a configuration, with whatever weights its class begins with."""
    model = model_class(config)
    model.set_attn_implementation(attention)
    return model


def load_processor(folder: Path, model_type: str, *, processor_class: Any) -> Any:
    """Load a transformers processor or tokenizer.

    Raises:
        EngineUsageError: The folder doesn't contain it.
    """
    CheckpointFolder(folder).admit(allow_pickle_weights=True)  # weights aren't looked for here
    with refuse_broken(folder, model_type):
        return processor_class.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


@contextmanager
def refuse_broken(folder: Path, model_type: str) -> Generator[None]:
    """Turn whatever transformers raises for a broken folder (many kinds of exceptions) into one line."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineUsageError(
            f"{folder}: can't be loaded as {visible(model_type, 40)} ({visible(reason)}); set the model folder"
        ) from error


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, flush it to disk, and rename it to `folder`; replaces an older one.

    At every moment `folder` is a complete checkpoint or, for the instant between two renames, absent.

    Raises:
        EngineError: Writing failed; nothing half-written is left in `folder`.
    """
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
        with without_progress_bars():
            write(temporary)
        for path in sorted(temporary.rglob("*")):
            _force_to_disk(path)
        temporary.chmod(0o755)
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{folder.name}.replaced-", dir=folder.parent))
            folder.replace(replaced / folder.name)
            temporary.replace(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            temporary.replace(folder)
        _force_to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"{folder}: can't write the checkpoint ({reason}); choose another output folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
