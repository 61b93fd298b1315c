"""The three parts of a VILA model, each an ordinary module, read from the published folder layout.

`llm/` and `vision_tower/` are transformers checkpoints themselves, `mm_projector/` is a `config.json` with a
`model.safetensors`. Remote code next to them is neither read nor run.

Shape legend: F frames, H and W patches per side, C channels of the tower, N rows of a frame, D hidden size.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from mrsp_engine.attention.registration import register_attention
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.checkpoints import build_without_weights, load_model, refuse_broken
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER, PROJECTOR_FOLDER, TOWER_FOLDER, VilaConfig
from mrsp_engine.families.vila.projector import VilaProjector

__all__ = ["PROJECTOR_FILE", "TOWER_PREFIX", "VilaModel"]

PROJECTOR_FILE = "model.safetensors"
TOWER_PREFIX = "vision_model."
"""Prefix of the tower's weight names in published files, which transformers' class no longer has."""


class VilaModel(nn.Module):
    """Language model, vision tower and projector.

    Args:
        llm: The language model with its head.
        vision_tower: SigLIP.
        mm_projector: The projector between them.
        select_layer: Which of the tower's hidden states the projector sees, counted from the end.
        num_scales: How often their channels are repeated for the projector.
    """

    def __init__(
        self, llm: Any, vision_tower: Any, mm_projector: VilaProjector, *, select_layer: int, num_scales: int = 1
    ) -> None:
        super().__init__()
        self.llm = llm
        self.vision_tower = vision_tower
        self.mm_projector = mm_projector
        self.select_layer = select_layer
        self.num_scales = num_scales

    @classmethod
    def load(
        cls,
        folder: Path,
        config: VilaConfig,
        *,
        model_type: str,
        dtype: torch.dtype,
        allow_pickle_weights: bool = False,
    ) -> "VilaModel":
        """Load all three parts; the projector lies in safetensors in any case.

        Raises:
            EngineUsageError: One of them is missing, damaged or doesn't match the others.
        """
        llm = load_model(
            folder / LANGUAGE_FOLDER,
            model_type,
            model_class=Qwen2ForCausalLM,
            dtype=dtype,
            attention=register_attention(),
            allow_pickle_weights=allow_pickle_weights,
        )
        tower = load_model(
            folder / TOWER_FOLDER,
            model_type,
            model_class=SiglipVisionModel,
            dtype=dtype,
            attention="sdpa",
            allow_pickle_weights=allow_pickle_weights,
        )

        def build() -> VilaProjector:
            return VilaProjector(
                config.projector_type,
                vision_width=int(tower.config.hidden_size) * config.num_scales,
                hidden_size=int(llm.config.hidden_size),
                is_by_columns=config.is_by_columns,
            )

        settings = {"select_layer": config.select_layer, "num_scales": config.num_scales}
        projector = build_without_weights(build, dtype)
        if projector is not None:
            return cls(llm, tower, projector, **settings)
        with refuse_broken(folder / PROJECTOR_FOLDER, model_type):
            with torch.device("meta"):  # before its shapes are those of the file, no memory is taken
                projector = build().to(dtype)
            weights = load_file(CheckpointFolder(folder).files.path(f"{PROJECTOR_FOLDER}/{PROJECTOR_FILE}"))
            expected = {name: tuple(weight.shape) for name, weight in projector.state_dict().items()}
            found = {name: tuple(weight.shape) for name, weight in weights.items()}
            if found != expected:
                name = min(name for name in {*found, *expected} if found.get(name) != expected.get(name))
                raise EngineUsageError(
                    f"{folder / PROJECTOR_FOLDER}: weight {name} has shape {found.get(name)}, expected "
                    f"{expected.get(name)} for {config.projector_type}; set another model folder"
                )
            projector.to_empty(device="cpu").load_state_dict(weights)
        return cls(llm, tower, projector, **settings)

    def see_frames(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels [F, 3, height, width] to the tower's patches [F, H × W, C]."""
        parameter = next(self.vision_tower.parameters())
        output = self.vision_tower(pixels.to(parameter), output_hidden_states=True)
        return cast(Tensor, output.hidden_states[self.select_layer])

    def project_frames(self, patches: Tensor) -> Tensor:
        """Project patches [F, H × W, C] to rows [F, N, D]."""
        squares = patches.unflatten(1, (self.patches_per_side, -1))
        if self.num_scales > 1:
            squares = squares.repeat(1, 1, 1, self.num_scales)
        return cast(Tensor, self.mm_projector(squares))

    @property
    def config(self) -> Any:
        """The language model's configuration, like in transformers' classes."""
        return self.llm.config

    @property
    def patches_per_side(self) -> int:
        """Patches per side of a frame, which has one fixed size."""
        config = self.vision_tower.config
        return int(config.image_size) // int(config.patch_size)

    def get_input_embeddings(self) -> nn.Module:
        """Like in transformers' classes."""
        return cast(nn.Module, self.llm.get_input_embeddings())

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Like in transformers' classes; concerns the language model."""
        self.llm.gradient_checkpointing_enable(**settings)

    def gradient_checkpointing_disable(self) -> None:
        """Like in transformers' classes."""
        self.llm.gradient_checkpointing_disable()
