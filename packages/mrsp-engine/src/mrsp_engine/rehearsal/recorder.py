"""Watches the operations of one rank: answers for fake tensors, and writes down memory, exchanges and operations.

Everything between two Python lines that touches a tensor passes through here. A number that the program reads from a
fake tensor is 0. An exchange of fake tensors is written down and does nothing; one of real tensors, such as plain
objects, really happens.

Parts of memory: weights, gathered weights (of sharded ones), gradients, optimizer, activations, embeddings, logits, and
what a caller assigns. What is made in a forward or backward pass is activations, unless its shape or the operation
tells more.
"""

import importlib
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from mrsp_engine.rehearsal.exchanges import read_exchange, skip_exchange, wait_for
from mrsp_engine.rehearsal.memory import MemoryLedger
from mrsp_engine.rehearsal.messages import Exchange
from mrsp_engine.rehearsal.operations import count_operations

__all__ = ["StepRecorder"]

_torch: Any = importlib.import_module("torch._C")


class StepRecorder(TorchDispatchMode):
    """Records one rank's step; operations are watched within a `with` block.

    Args:
        fakes: The mode of the step's fake tensors.
        on_exchange: Called before and after an exchange that really happens, with whether it is the beginning.

    Attributes:
        memory: The bytes held.
        exchanges: What was exchanged, in order.
        operations: Floating-point operations by stage.
    """

    def __init__(self, fakes: FakeTensorMode, on_exchange: Callable[[bool], None] = lambda _: None) -> None:
        super().__init__()
        self.memory = MemoryLedger(self._describe_place)
        self.exchanges: list[Exchange] = []
        self.operations: dict[str, float] = {}
        self._fakes = fakes
        self._on_exchange = on_exchange
        self._stage = ""
        self._part: str | None = None
        self._has_numbers = True
        self._names: dict[int, str] = {}
        self._weight_shapes: set[torch.Size] = set()
        self._scorers: dict[int, int] = {}
        self._decoders: set[int] = set()
        self._entered: list[nn.Module] = []
        self._has_decoded = False
        self._last_name = ""
        self._is_in_optimizer = False
        self._is_host = False
        self._undo: list[Any] = []

    def __enter__(self) -> "StepRecorder":
        """Watch."""
        self._undo = [
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._enter_optimizer),
            register_optimizer_step_post_hook(self._leave_optimizer),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._undo:
            handle.remove()

    @contextmanager
    def stage(self, name: str, part: str | None = None, *, has_numbers: bool = False) -> Generator[None]:
        """Everything within the block belongs to a stage.

        Args:
            name: Of the stage, whose peak is noted.
            part: All that is made belongs to it; told apart by itself if None.
            has_numbers: Tensors made out of nothing have numbers, such as pixels.
        """
        before = self._stage, self._part, self._has_numbers
        self._stage, self._part, self._has_numbers = name, part, has_numbers
        self.memory.begin(name)
        yield
        self._stage, self._part, self._has_numbers = before

    @contextmanager
    def host(self) -> Generator[None]:
        """What is made within the block lies in the host's memory, and isn't counted."""
        self._is_host = True
        yield
        self._is_host = False

    def know(self, scorer: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        """Learn the names and shapes of a model: its weights are counted as such from here on.

        Args:
            scorer: What all training calls.
            decoder: The language model without its head.
            head: Its head.
        """
        self._names |= {id(module): name for name, module in scorer.named_modules()}
        self._decoders.add(id(decoder))
        whole = [parameter.shape for parameter in scorer.parameters() if parameter.dim() > 1]
        self._weight_shapes |= set(whole)
        self._scorers[id(scorer)] = int(head.get_parameter("weight").shape[0])

    def assign(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as a part; of sharded ones what this rank holds."""
        self.memory.assign(map(_held, tensors), part)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        kwargs = kwargs or {}
        if any(not issubclass(kind, FakeTensor) and kind.__name__ in _WRAPPERS for kind in types):
            return NotImplemented  # comes again with the tensors inside
        fakes = _torch._get_dispatch_mode(_torch._TorchDispatchModeKey.FAKE)
        if fakes is not None and fakes is not self._fakes:
            return func(*args, **kwargs)  # a library finds out shapes
        if func.namespace in ("c10d", "_c10d_functional"):
            return self._exchange(func, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return False if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0
        is_fake = any(issubclass(kind, FakeTensor) for kind in types)
        if not (is_fake or fakes is not None or self._is_on_device(func, kwargs)):
            return self._really(func, args, kwargs)
        with self._fakes:
            result = func(*args, **kwargs)
            if func is torch.ops.aten.detach.default and weakref.getweakrefs(result):
                # The mode remembers the first of a kind, and torch doesn't move a parameter that anything remembers.
                result = func(*args, **kwargs)
        self.operations[self._stage] = self.operations.get(self._stage, 0.0) + count_operations(
            func, args, kwargs, result
        )
        self._count(func, result)
        if func.namespace == "fsdp" and func.overloadpacket.__name__ == "split_with_sizes_copy":
            self.memory.watch(kwargs["out"], "gathered weights")  # FSDP2 empties and refills these
        return result

    @staticmethod
    def _really(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute with real numbers, as for the plan of a step."""
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _is_on_device(self, func: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether an operator makes numbers that a device would hold out of nothing; integers plan the step."""
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return not self._has_numbers and func.overloadpacket in _FACTORIES and dtype.is_floating_point

    def _count(self, func: Any, result: Any) -> None:
        if isinstance(result, FakeTensor):
            if self._is_host:
                self.memory.exclude(result)
            else:
                self.memory.add(result, self._part_of(func, result))
        elif isinstance(result, tuple | list):
            for item in cast(Iterable[Any], result):
                self._count(func, item)

    def _part_of(self, func: Any, tensor: Tensor) -> str:
        if self._part is not None:
            return self._part
        if self._is_in_optimizer:
            return "optimizer"
        if func.namespace == "fsdp":
            return "gathered weights" if "all_gather" in str(func) else "gradients"
        is_backward = _torch._current_graph_task_id() != -1
        if not (is_backward or self._entered):
            return "gradients"
        if tensor.dim() and tensor.shape[-1] in self._scorers.values():
            return "logits"
        if is_backward and tensor.shape in self._weight_shapes:
            return "gradients"
        is_embedding = len(self._entered) == 1 and id(self._entered[0]) in self._scorers and not self._has_decoded
        return "embeddings" if is_embedding or (self._entered and not self._in_decoder()) else "activations"

    def _in_decoder(self) -> bool:
        return self._has_decoded or any(id(module) in self._decoders for module in self._entered)

    def _exchange(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        found = read_exchange(func, args, kwargs, place=self._describe_place())
        if found is None:
            return func(*args, **kwargs)
        self.exchanges.append(found.exchange)
        if found.is_real:
            self._on_exchange(True)
            result = self._really(func, args, kwargs)
            wait_for(result)
            self._on_exchange(False)
            return result
        result = skip_exchange(func, args, kwargs)
        self._count(func, result)
        if found.part is not None and self._part is None:
            self.assign(found.tensors, found.part)
        return result

    def _describe_place(self) -> str:
        name = self._names.get(id(self._entered[-1]), "") if self._entered else ""
        if _torch._current_graph_task_id() != -1:
            name = f"backward of {self._last_name or 'the loss'}"
        elif self._is_in_optimizer:
            name = "optimizer"
        return f"{self._stage}: {name}" if name else self._stage

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        if id(module) in self._scorers:
            self._has_decoded = False
        self._entered.append(module)
        self._last_name = self._names.get(id(module), self._last_name)

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        # A recomputation that stops early leaves several modules at once.
        while self._entered and self._entered.pop() is not module:
            pass
        if id(module) in self._decoders:
            self._has_decoded = True

    def _enter_optimizer(self, *_: Any) -> None:
        self._is_in_optimizer = True

    def _leave_optimizer(self, *_: Any) -> None:
        self._is_in_optimizer = False


_FACTORIES = tuple(getattr(torch.ops.aten, name) for name in ("empty", "empty_strided", "zeros", "ones", "full"))
_WRAPPERS = ("DTensor", "AsyncCollectiveTensor")


def _held(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
