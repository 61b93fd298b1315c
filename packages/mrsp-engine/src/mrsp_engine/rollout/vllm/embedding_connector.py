"""Lets vLLM's worker read the embedding store itself, so that a request carries a name instead of a tensor.

vLLM calls such a reader an encoder-cache connector and finds it here by module and class name. The class is created
when vLLM looks it up, because its base class is vLLM's and importing this package must not load vLLM. A request whose
embedding is no longer in the store fails alone; its embedding is never substituted. The module does not depend on
prompts or sampling.

A medium's name includes everything that affects its embedding and its positions, because vLLM relies on the name alone:
it reuses what it computed for a name in every other request with that name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.rollout.base import EmbeddingSource

__all__ = ["connector_options", "medium_name"]

CLASS_NAME = "StoreConnector"
NAME_DIGITS = 16

_shared: dict[str, EmbeddingSource] = {}
"""The open stores of this process by folder, so that a worker in the same process shares their memory."""


def medium_name(medium: MediaReference) -> str:
    """The store's key and a digest of everything else in a reference: grid, timing and a family's additions."""
    layout = {name: value for name, value in asdict(medium).items() if name != "key"}
    digest = hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()
    return f"{medium.key}-{digest[:NAME_DIGITS]}"


def connector_options(source: EmbeddingSource) -> dict[str, Any]:
    """The engine options that make vLLM read this store."""
    from vllm.config import ECTransferConfig

    folder = str(source.folder)
    _shared[folder] = source
    return {
        "ec_transfer_config": ECTransferConfig(
            ec_connector=CLASS_NAME,
            ec_connector_module_path=__name__,
            ec_role="ec_consumer",
            ec_connector_extra_config={"folder": folder},
        )
    }


class StoreReader:
    """Finds embeddings by the names of their media.

    Args:
        folder: The store's folder; opened unless this process already has it open.
    """

    def __init__(self, folder: str) -> None:
        shared = _shared.get(folder)
        self._source: EmbeddingSource = EmbeddingStore(Path(folder), is_read_only=True) if shared is None else shared

    def find(self, name: str) -> Tensor | None:
        """The embedding of a medium, or None if it is no longer in the store."""
        return self._source.get(name.partition("-")[0])

    def load(self, names: Mapping[str, None], encoder_cache: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Put the named embeddings where vLLM's model expects them.

        Raises:
            EngineError: One was deleted from the store after vLLM had found it there.
        """
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = torch.device(accelerator.type, torch.accelerator.current_device_index()) if accelerator else "cpu"
        for name in names:
            if name in encoder_cache:
                continue
            tensor = self.find(name)
            if tensor is None:
                raise EngineError(f"embedding {name} disappeared from {self._source.folder} while vLLM was reading it")
            encoder_cache[name] = tensor.to(device, dtype)


@cache
def _create_class() -> type:
    """The connector's class; vLLM creates an instance for its scheduler and one for each worker."""
    from vllm.config import VllmConfig
    from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    class Wanted(ECConnectorMetadata):
        """What the scheduler requests from the workers in one step."""

        def __init__(self, names: dict[str, None]) -> None:
            self.names = names

    class StoreConnector(ECConnectorBase):
        """See the module docstring; methods without a docstring are documented in vLLM's base class."""

        def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
            super().__init__(vllm_config, role)
            assert vllm_config.ec_transfer_config is not None
            self._reader = StoreReader(vllm_config.ec_transfer_config.get_from_extra_config("folder", ""))
            self._dtype = vllm_config.model_config.dtype
            self._wanted: dict[str, None] = {}
            self._lost: set[str] = set()

        def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
            # Called before every step, so repeated calls must be cheap.
            names = [
                feature.identifier
                for feature in request.mm_features
                if feature.mm_position.offset + feature.mm_position.length > num_computed_tokens
            ]
            if all(self._reader.find(name) is not None for name in names):
                return True
            self._lost.add(request.request_id)
            return False

        def take_unavailable_requests(self) -> set[str]:
            lost, self._lost = self._lost, set()
            return lost

        def has_cache_item(self, identifier: str) -> bool:
            return self._reader.find(identifier) is not None

        def update_state_after_alloc(self, request: Request, index: int) -> None:
            self._wanted[request.mm_features[index].identifier] = None

        def build_connector_meta(self, scheduler_output: SchedulerOutput) -> ECConnectorMetadata:
            wanted, self._wanted = self._wanted, {}
            return Wanted(wanted)

        def start_load_caches(self, encoder_cache: dict[str, Tensor], **kwargs: Any) -> None:
            wanted = self._get_connector_metadata()
            assert isinstance(wanted, Wanted)
            self._reader.load(wanted.names, encoder_cache, self._dtype)

        def save_caches(self, encoder_cache: dict[str, Tensor], mm_hash: str, **kwargs: Any) -> None:
            return None

    return StoreConnector


def __getattr__(name: str) -> Any:
    if name == CLASS_NAME:
        return _create_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
