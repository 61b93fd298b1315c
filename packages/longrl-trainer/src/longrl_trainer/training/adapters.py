"""LoRA by peft: small matrices beside chosen layers are trained, and the layers themselves stay as they are.

A layer of weight W [O, I] computes W x + s B A x with A [R, I] and B [O, R], where s is alpha / R, or alpha / √R with
rsLoRA (arXiv 2106.09685, 2312.03732). B begins as zero. peft puts the matrices into the model in place, so that the
model stays the family's own and nothing has to know the names of a wrapper.

On disk adapters have PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, which PEFT and vLLM read.
Merged weights are computed one by one, from complete tensors where they are sharded.

Shape legend: R rank, I inputs and O outputs of a layer.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.config.sections import LoraSection
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import LINK_CURE, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.adapter_targets import choose_targets
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.distributed.sharded_weights import has_first_parts, whole_tensor
from mrsp_engine.families.base import Policy
from mrsp_engine.families.checkpoints import write_checkpoint

__all__ = ["LoraAdapters", "dropping"]

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What the names of weights begin with in PEFT's files."""
KINDS = ("lora_A", "lora_B")
NAME = "default"
"""PEFT's name for the only adapter of a model."""
MOST_CONFIG_BYTES = 2**22
_SETTINGS = ("peft_type", "r", "lora_alpha", "use_rslora", "bias", "use_dora", "modules_to_save", "rank_pattern")


class LoraAdapters:
    """The adapters of a policy, which has them from now on; see `mrsp_engine.families.base.Adapters`.

    Args:
        policy: The model; only its adapters are trained afterwards.
        lora: The recipe's settings.
        seed: Determines the first values of A, whichever other random numbers are drawn.

    Raises:
        TrainerUsageError: The targets match nothing.
    """

    def __init__(self, policy: Policy, lora: LoraSection, *, seed: int) -> None:
        import peft

        targets = choose_targets(policy, lora)
        self._policy, self._model = policy, policy.causal_model
        self._config: Any = peft.LoraConfig(
            r=cast(int, lora.rank),
            lora_alpha=cast(int, lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=targets,
            use_rslora=lora.use_rslora,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(policy.source),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lora"))
            peft.inject_adapter_in_model(self._config, self._model, adapter_name=NAME)
        self._layers: dict[str, Any] = {name: self._model.get_submodule(name) for name in targets}
        self._targets = targets
        seeing = set(() if policy.encoder is None else map(id, policy.encoder.parts.modules()))
        self._sampled_layers = [name for name, layer in self._layers.items() if id(layer) not in seeing]
        policy.model.requires_grad_(False)
        policy.model.eval()
        policy.adapters = self
        self.train()

    @property
    def rank(self) -> int:
        """See `Adapters.rank`."""
        return int(self._config.r)

    @property
    def sampled_layers(self) -> list[str]:
        """See `Adapters.sampled_layers`."""
        return self._sampled_layers

    def train(self) -> None:
        """See `Adapters.train`."""
        for parameter in self._parameters().values():
            parameter.requires_grad_(True)

    @contextmanager
    def turned_off(self) -> Generator[None]:
        """See `Adapters.turned_off`."""
        try:
            for layer in self._layers.values():
                layer.enable_adapters(False)
            self.train()  # FSDP2 looks at its first forward pass, which may be this one, at what is trained
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def dropping(self, seed: int) -> Generator[None]:
        """Within the block, inputs of the language model's adapters are dropped, by random numbers of its own."""
        dropouts: list[nn.Module] = [self._layers[name].lora_dropout for name in self.sampled_layers]
        devices = [self._policy.device] if self._policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for dropout in dropouts:
                dropout.train()
            try:
                yield
            finally:
                for dropout in dropouts:
                    dropout.eval()

    def merged_weights(self, module: nn.Module, *, device: torch.device | None = None) -> Iterator[tuple[str, Tensor]]:
        """See `Adapters.merged_weights`."""
        layers = {id(layer): layer for layer in self._layers.values()}
        own = {name: layers[id(part)] for name, part in module.named_modules() if id(part) in layers}
        for name, tensor in module.state_dict(keep_vars=True).items():
            place, base, last = name.rpartition(".base_layer.")
            if base and place in own:
                weight = self._merge(own[place], tensor, device) if last == "weight" else tensor
                yield f"{place}.{last}", weight
            elif not any(name.startswith(f"{place}.lora_") for place in own):
                yield name, tensor

    def save(self, folder: Path) -> None:
        """See `Adapters.save`."""
        tensors = self._tensors(self._targets)
        if has_first_parts(self._policy.model):
            write_checkpoint(folder, lambda temporary: self._write(temporary, self._targets, tensors))

    def write_for_sampler(self, folder: Path, checkpoint_name: Callable[[str], str]) -> None:
        """See `Adapters.write_for_sampler`; without those of the vision."""
        # Names in a part of the model are those in a checkpoint of that part.
        named = checkpoint_name if self._model is self._policy.model else str
        tensors = {
            f"{PREFIX}{named(name.removeprefix(PREFIX))}": tensor
            for name, tensor in self._tensors(self.sampled_layers).items()
        }
        self._write(folder, [named(f"{name}.").removesuffix(".") for name in self.sampled_layers], tensors)

    def load(self, folder: Path) -> None:
        """Take the values that `save` wrote for the same model and settings.

        Raises:
            TrainerError: The folder holds no adapters, or those of another model or of other settings.
        """
        _check_settings(folder, self._settings(self._targets))
        own = self._parameters()
        with torch.no_grad():
            for name, tensor in _read_tensors(folder, {name: weight.shape for name, weight in own.items()}).items():
                own[name].copy_(tensor)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """A and B of every layer, under the names that they have in PEFT's files."""
        return {
            f"{PREFIX}{name}.{kind}.weight": getattr(layer, kind)[NAME].weight
            for name, layer in self._layers.items()
            for kind in KINDS
        }

    def _merge(self, layer: Any, weight: Tensor, device: torch.device | None) -> Tensor:
        """W + s B A, computed in at least float32 and rounded once."""
        fine = torch.promote_types(self._policy.dtype, torch.float32)
        whole_OI, A_RI, B_OR = (
            whole_tensor(weight).detach(),
            *(self._whole(getattr(layer, kind)[NAME].weight) for kind in KINDS),
        )
        merged_OI = torch.addmm(whole_OI.to(fine), B_OR.to(fine), A_RI.to(fine), alpha=layer.scaling[NAME])
        return merged_OI.to(device=device, dtype=whole_OI.dtype)

    def _whole(self, adapter: Tensor) -> Tensor:
        """A or B in the dtype of the model's computations, since sharded ones are kept in a finer one."""
        return whole_tensor(adapter, self._policy.dtype).detach()

    def _settings(self, targets: list[str]) -> dict[str, Any]:
        return self._config.to_dict() | {"target_modules": sorted(targets), "inference_mode": True}

    def _tensors(self, targets: list[str]) -> dict[str, Tensor]:
        """The complete matrices of some layers, in host memory."""
        chosen = tuple(f"{PREFIX}{name}.lora_" for name in targets)
        return {
            name: self._whole(weight).cpu().contiguous()
            for name, weight in self._parameters().items()
            if name.startswith(chosen)
        }

    def _write(self, folder: Path, targets: list[str], tensors: dict[str, Tensor]) -> None:
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        write_json(folder / CONFIG_NAME, self._settings(targets))


@contextmanager
def dropping(policy: Policy, config: TrainingConfig, *, step: int, ranks: Ranks) -> Generator[None]:
    """Within the block, dropout is as the recipe sets it; the same when the step is repeated by as many ranks."""
    if not config.lora.dropout:
        yield
        return
    with cast(LoraAdapters, policy.adapters).dropping(derive_seed(config.seed, "lora dropout", step, ranks.rank)):
        yield


def _check_settings(folder: Path, expected: Mapping[str, Any]) -> None:
    """Compare the settings of saved adapters with what they should be.

    Raises:
        TrainerError: They can't be read, or differ.
    """
    values = ForeignFolder(folder, error=TrainerError, link_cure=LINK_CURE).read_json(
        CONFIG_NAME, max_bytes=MOST_CONFIG_BYTES
    )
    found = cast(dict[str, Any], values) if isinstance(values, dict) else {}
    for name in _SETTINGS:
        if found.get(name) != expected[name]:
            raise TrainerError(
                f"{folder}: adapters with {name}={visible(repr(found.get(name)), 40)}, expected {expected[name]!r}; "
                "they belong to other settings or another model"
            )


def _read_tensors(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The saved matrices, which have the given names and shapes."""
    path = ForeignFolder(folder, error=TrainerError, link_cure=LINK_CURE).path(WEIGHTS_NAME)
    most_bytes = 2**24 + sum(8 * shape.numel() + 2**12 for shape in shapes.values())
    if path.stat().st_size > most_bytes:
        raise TrainerError(
            f"{path}: has {path.stat().st_size:,} bytes, expected at most {most_bytes:,} for these adapters"
        )
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainerError(f"{path}: can't be read ({visible(str(error))})") from error
    for name in sorted(tensors.keys() | shapes.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        expected = tuple(shapes[name]) if name in shapes else None
        if found != expected:
            raise TrainerError(
                f"{path}: {visible(name, 100)} has shape {found}, expected {expected}; the adapters belong to another "
                "model or to other targets"
            )
    return tensors
