"""Everything that an embedding depends on, in one value whose digest is the embedding's name.

Two media share an embedding only if nothing that could change a single number differs: the file's bytes, the frames and
their times, the size after resizing, the processor's settings, the encoder's weights, the dtype and the family. The
module does not depend on how these are obtained.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["EmbeddingKey", "StoredContent", "encoder_fingerprint", "tensor_bytes"]

StoredContent = Literal["embeddings", "features", "frames"]
"""The content of an entry: rows for the language model, inputs of the projector, or resized uint8 frames."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingKey:
    """Everything that affects the embedding of one medium.

    Attributes:
        content_digest: SHA-256 of the file's bytes.
        frame_indices: Frames that were encoded, in order.
        timestamps: Their times in whole microseconds.
        height: Height in pixels after resizing.
        width: Width in pixels after resizing.
        processor_digest: Digest of the processor's settings.
        encoder_fingerprint: Fingerprint of all weights that affect the entry, see `encoder_fingerprint`: tower and
            projector for embeddings, the tower alone for features, empty for frames.
        dtype: Dtype in which the encoder ran, such as "float32".
        family: Name of the model family whose code encodes.
        content: Content of the entry.
    """

    content_digest: str
    frame_indices: tuple[int, ...]
    timestamps: tuple[int, ...]
    height: int
    width: int
    processor_digest: str
    encoder_fingerprint: str
    dtype: str
    family: str
    content: StoredContent = "embeddings"

    def to_json(self) -> str:
        """Canonical JSON: sorted names, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def encoder_fingerprint(module: nn.Module, *, without: tuple[str, ...] = ()) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of a module's parameters and persistent buffers.

    Args:
        module: The weights.
        without: Prefixes of the names to omit.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(without)}
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        if not isinstance(tensor, FakeTensor):  # in a rehearsal, weights have no numbers
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as bytes in row-major order; without a copy where possible."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
