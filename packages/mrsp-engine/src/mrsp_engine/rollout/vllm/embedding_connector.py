"""VLLM's worker reads the embedding store itself, so that a request carries a name in place of a tensor.

vLLM calls such a reader an encoder-cache connector and finds it here by module and class name. The class is made when
vLLM asks for it, because its base is vLLM's and importing this package loads no vLLM. A request whose embedding has
left the store is failed alone; nothing else is ever put in its place. The module doesn't know prompts or sampling.

A medium's name says everything that shapes its embedding and its positions, because vLLM trusts the name alone: what
it computed for one name it serves for every other request that uses it.
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
"""The stores of this process by folder: a worker in the same process uses its memory too."""


def medium_name(medium: MediaReference) -> str:
    """The store's key and a digest of everything else a reference holds: grid, timing and what a family adds."""
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
        folder: The store's folder; opened here unless this process has it open already.
    """

    def __init__(self, folder: str) -> None:
        shared = _shared.get(folder)
        self._source: EmbeddingSource = EmbeddingStore(Path(folder), is_read_only=True) if shared is None else shared

    def find(self, name: str) -> Tensor | None:
        """The embedding of a medium, or None if the store holds it no more."""
        return self._source.get(name.partition("-")[0])

    def load(self, names: Mapping[str, None], encoder_cache: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Put the named embeddings where vLLM's model looks for them.

        Raises:
            EngineError: If one left the store after it was seen there a moment ago.
        """
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = torch.device(accelerator.type, torch.accelerator.current_device_index()) if accelerator else "cpu"
        for name in names:
            if name in encoder_cache:
                continue
            tensor = self.find(name)
            if tensor is None:
                raise EngineError(f"embedding {name} left {self._source.folder} while vLLM was reading it")
            encoder_cache[name] = tensor.to(device, dtype)


@cache
def _create_class() -> type:
    """The connector's class; vLLM makes one for its scheduler and one for each worker."""
    from vllm.config import VllmConfig
    from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    class Wanted(ECConnectorMetadata):
        """What the scheduler asks of the workers in one step."""

        def __init__(self, names: dict[str, None]) -> None:
            self.names = names

    class StoreConnector(ECConnectorBase):
        """See the module; methods without a docstring are described in vLLM's base class."""

        def __init__(self, vllm_config: VllmConfig, role: ECConnectorRole) -> None:
            super().__init__(vllm_config, role)
            assert vllm_config.ec_transfer_config is not None
            self._reader = StoreReader(vllm_config.ec_transfer_config.get_from_extra_config("folder", ""))
            self._dtype = vllm_config.model_config.dtype
            self._wanted: dict[str, None] = {}
            self._lost: set[str] = set()

        def ensure_cache_available(self, request: Request, num_computed_tokens: int) -> bool:
            # Asked again before every step, so what is computed already must cost nothing.
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
