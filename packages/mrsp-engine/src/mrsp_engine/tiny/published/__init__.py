"""Small random checkpoints in the exact layouts of published models.

`mrsp_engine.tiny.families` writes folders like the installed transformers. These folders are like those on a hub: file
names, names of weights, shards with an index, dtype and every key of every configuration are those of the published
models, most of which were written by transformers 4. Only the sizes are small, the weights random, and the texts
(templates, cards, licences) our own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.tiny.published.qwen2_5_omni import QWEN_OMNI_KINDS, write_qwen_omni
from mrsp_engine.tiny.published.qwen2_vl import QWEN2_VL_KINDS, write_qwen2_vl
from mrsp_engine.tiny.published.qwen3_5 import QWEN3_5_KINDS, write_qwen3_5
from mrsp_engine.tiny.published.qwen3_vl import QWEN3_VL_KINDS, write_qwen3_vl
from mrsp_engine.tiny.published.qwen_text import QWEN_TEXT_KINDS, write_qwen_text
from mrsp_engine.tiny.published.vila import VILA_KINDS, write_vila

__all__ = ["PUBLISHED_KINDS", "write_published"]

PUBLISHED_KINDS: Mapping[str, Callable[[Path, int], None]] = {
    **{kind: partial(write_qwen_text, kind) for kind in QWEN_TEXT_KINDS},
    **{kind: partial(write_qwen_omni, kind) for kind in QWEN_OMNI_KINDS},
    **{kind: partial(write_qwen2_vl, kind) for kind in QWEN2_VL_KINDS},
    **{kind: partial(write_qwen3_5, kind) for kind in QWEN3_5_KINDS},
    **{kind: partial(write_qwen3_vl, kind) for kind in QWEN3_VL_KINDS},
    **{kind: partial(write_vila, kind) for kind in VILA_KINDS},
}
"""The functions that fill an empty folder, given a seed, by the model whose layout it gets."""


def write_published(kind: str, folder: Path, seed: int = 0) -> None:
    """Write a small random checkpoint in a published layout.

    Args:
        kind: The layout; one of `PUBLISHED_KINDS`.
        folder: The output folder; it must not exist or be empty.
        seed: Seed of the weights.

    Raises:
        EngineUsageError: There is no such kind, or the folder isn't empty.
        EngineError: The folder can't be written.
    """
    if kind not in PUBLISHED_KINDS:
        raise EngineUsageError(f"kind {kind!r}: expected one of {', '.join(sorted(PUBLISHED_KINDS))}")
    require_empty(folder)
    write_checkpoint(folder, lambda temporary: PUBLISHED_KINDS[kind](temporary, seed))
