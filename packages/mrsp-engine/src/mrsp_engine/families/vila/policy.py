"""VILA, NVILA and LongVILA checkpoints behind the engine's interface.

A frame is resized to SigLIP's fixed size, becomes a square of rows, and is followed by a line break that the language
model embeds like any text. Checkpoints with temporal pooling replace groups of frames by their mean first. All
positions have one axis.

Shape legend: F frames, N rows of all frames, R rows per side, D hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer, SiglipImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.encoding.frame_encoder import FrameEncoder, FrameLayout, transformer_operations
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.chat_prompts import check_token
from mrsp_engine.families.checkpoints import load_processor, place
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER, PROJECTOR_FOLDER, TOWER_FOLDER, MediaSyntax, VilaConfig
from mrsp_engine.families.vila.frame_sizes import VilaFrames
from mrsp_engine.families.vila.model import TOWER_PREFIX, VilaModel
from mrsp_engine.families.vila.projector import pool_mean
from mrsp_engine.prompts import MediaTokens, Stretch

__all__ = ["MEDIA_TEXTS", "LlavaLlamaFamily", "VilaFamily", "VilaPolicy", "load_tokenizer"]

MEDIA_TEXTS = {"video": "<vila/video>", "image": "<image>"}
"""Characters that represent a medium, each one token of the tokenizer."""


def load_tokenizer(folder: Path, model_type: str) -> Any:
    """The tokenizer in a language model's folder, with the tokens of media.

    Where its files lack them they are appended, as when VILA's own code loads it. The language model's embedding may
    end before them (VILA's code extends it on loading, with rows that nothing reads); here it is unchanged.
    """
    tokenizer = load_processor(folder, model_type, processor_class=AutoTokenizer)
    tokenizer.add_tokens(list(MEDIA_TEXTS.values()), special_tokens=True)
    return tokenizer


class VilaEncoder(FrameEncoder):
    """Encodes with a checkpoint's image processor, tower and projector.

    Args:
        model: The three parts.
        image_processor: The tower's image processor.
        config: The checkpoint's configuration.
        family: Name used in the key.
    """

    has_one_size = True

    def __init__(self, model: VilaModel, image_processor: Any, config: VilaConfig, family: str) -> None:
        self._model = model
        self._processor = image_processor
        self._syntax = {"video": config.video} | ({} if config.image is None else {"image": config.image})
        shared = image_processor.to_dict() | {
            "select_layer": config.select_layer,
            "projector": config.projector_type,
            "is_by_columns": config.is_by_columns,
            "num_scales": config.num_scales,
        }
        parts = nn.ModuleDict({"vision_tower": model.vision_tower, "mm_projector": model.mm_projector})
        super().__init__(
            parts,
            family,
            {modality: shared | {"pool": syntax.pool} for modality, syntax in self._syntax.items()},
            projector=("mm_projector.",),
        )

    def lay_out(
        self, modality: str, height: int, width: int, seconds: Sequence[float], budget: FrameBudget = UNLIMITED
    ) -> FrameLayout:
        """See `FrameEncoder.lay_out`; every frame is resized to the tower's fixed size."""
        side = self._model.mm_projector.rows_per_side(self._model.patches_per_side)
        syntax = self._syntax[modality]
        if modality == "image":
            syntax = replace(syntax, pool=(1, *syntax.pool[1:]))
        grid_thw = VilaFrames(rows_per_side=side, syntax=syntax).grid(len(seconds), budget)
        pool_frames = len(seconds) // grid_thw[0]
        config = self._model.vision_tower.config
        num_patches = self._model.patches_per_side**2
        return FrameLayout(
            height=int(self._processor.size["height"]),
            width=int(self._processor.size["width"]),
            grid_thw=grid_thw,
            num_tokens=grid_thw[0] * grid_thw[1] * grid_thw[2],
            frames_per_group=pool_frames,
            num_groups=grid_thw[0],
            operations_per_group=pool_frames
            * transformer_operations(
                num_patches,
                width=int(config.hidden_size),
                intermediate_size=int(config.intermediate_size),
                depth=int(config.num_hidden_layers),
                attended_patches=num_patches,
            ),
        )

    def resize(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> NDArray[np.uint8]:
        """See `FrameEncoder.resize`."""
        if not self._processor.do_resize:
            return frames
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        size = SizeDict(height=layout.height, width=layout.width)
        resized: Tensor = TorchvisionBackend.resize(self._processor, pixels, size, resample=self._processor.resample)
        return cast(NDArray[np.uint8], resized.permute(0, 2, 3, 1).contiguous().numpy())

    def extract(self, modality: str, frames: NDArray[np.uint8], layout: FrameLayout) -> Tensor:
        """See `FrameEncoder.extract`; the patches of a group's frames are concatenated."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        inputs = self._processor(
            images=list(pixels), do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        patches_FTC = self._model.see_frames(inputs["pixel_values"])
        return patches_FTC.unflatten(0, (-1, layout.frames_per_group)).flatten(1, 2)

    def project(self, modality: str, features: Tensor, layout: FrameLayout) -> Tensor:
        """See `FrameEncoder.project`; pooling comes last."""
        rows_FND = self._model.project_frames(features.unflatten(1, (layout.frames_per_group, -1)).flatten(0, 1))
        side = self._model.mm_projector.rows_per_side(self._model.patches_per_side)
        rows_FRRD = pool_mean(rows_FND.unflatten(1, (side, side)), layout.frames_per_group, 0)
        for dim, factor in enumerate(self._syntax[modality].pool[1:], start=1):
            rows_FRRD = pool_mean(rows_FRRD, factor, dim)
        return rows_FRRD.flatten(0, 2)

    @property
    def embedding_width(self) -> int:
        """See `FrameEncoder.embedding_width`."""
        return int(self._model.config.hidden_size)


class VilaPolicy(LanguagePolicy):
    """One VILA model with its tokenizer; see `Policy` for the members."""

    name: ClassVar[str] = "vila"

    def __init__(
        self,
        folder: Path,
        model: VilaModel,
        tokenizer: Any,
        image_processor: Any,
        store: EmbeddingStore,
        config: VilaConfig,
    ) -> None:
        size = (image_processor.size["height"], image_processor.size["width"])
        expected = int(model.vision_tower.config.image_size)
        if size != (expected, expected):
            raise EngineUsageError(
                f"{folder / TOWER_FOLDER}: the image processor makes frames of {size[0]}×{size[1]}, the tower expects "
                f"{expected}×{expected}; set another model folder"
            )
        syntax = {"video": config.video} | ({} if config.image is None else {"image": config.image})
        super().__init__(
            folder,
            model,
            tokenizer,
            tokenizer,
            store,
            causal_model=model.llm,
            media={
                modality: _media_tokens(folder, tokenizer, MEDIA_TEXTS[modality], of_modality)
                for modality, of_modality in syntax.items()
            },
            encoder=VilaEncoder(model, image_processor, config, self.name),
        )

    @classmethod
    def lay_out(cls, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`; in published files the tower's weight names have a prefix."""
        tower = _weights_of("vision_tower.", weights)
        return {
            LANGUAGE_FOLDER: _weights_of("llm.", weights),
            TOWER_FOLDER: {f"{TOWER_PREFIX}{name}": tensor for name, tensor in tower.items()} | tower,
            PROJECTOR_FOLDER: _weights_of("mm_projector.", weights),
        }

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; the sampler runs only the language model."""
        is_tied = self.language_model_head.get_parameter("weight") is self._decoder.embed_tokens.weight
        for name, tensor in self.weights_to_sample(self.causal_model):
            if name != "lm_head.weight" or not is_tied:
                yield name, self.as_computed(tensor)


def _weights_of(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a part of the model, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _media_tokens(folder: Path, tokenizer: Any, text: str, syntax: MediaSyntax) -> MediaTokens:
    """Every frame's rows between its opening and closing texts."""
    placeholder_id = check_token(folder / LANGUAGE_FOLDER, tokenizer, text)
    start, end = (
        tuple(cast(list[int], tokenizer(written, add_special_tokens=False)["input_ids"]))
        for written in (syntax.start, syntax.end)
    )

    def stretches(medium: MediaReference) -> list[Stretch]:
        return [(start, end)] * medium.grid_thw[0]

    return MediaTokens(part=text, written=(placeholder_id,), placeholder_id=placeholder_id, stretches=stretches)


class VilaFamily:
    """Loads VILA, NVILA and LongVILA checkpoints in the layout `llm/`, `vision_tower/`, `mm_projector/`."""

    model_type = "vila"

    def load_policy(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        store: EmbeddingStore,
        device: torch.device,
        allow_pickle_weights: bool = False,
    ) -> VilaPolicy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete VILA checkpoint, or is of an unsupported kind.
        """
        config = VilaConfig.read(folder)
        model = VilaModel.load(
            folder, config, model_type=self.model_type, dtype=dtype, allow_pickle_weights=allow_pickle_weights
        )
        tokenizer = load_tokenizer(folder / LANGUAGE_FOLDER, self.model_type)
        images = load_processor(folder / TOWER_FOLDER, self.model_type, processor_class=SiglipImageProcessor)
        return VilaPolicy(folder, place(model, device), tokenizer, images, store, config)

    def lay_out(self, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`."""
        return VilaPolicy.lay_out(folder, weights)


class LlavaLlamaFamily(VilaFamily):
    """The same under the model type of checkpoints written by VILA's own trainer."""

    model_type = "llava_llama"
