"""Qwen2.5-VL: a language model with three rotary axes, a windowed vision tower, and videos whose positions encode time.

The language model runs under the engine's attention (`attention.registration`), the vision tower under ordinary `sdpa`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mrsp_engine.attention.registration import register_attention
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families.chat_prompts import check_token
from mrsp_engine.families.checkpoints import load_model, load_processor, place
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.families.qwen.vision import QwenVisionEncoder
from mrsp_engine.positions import qwen2_5_vl_extent, qwen2_5_vl_positions
from mrsp_engine.prompts import MediaTokens, PositionRule

VISION_ATTENTION = "sdpa"


class Qwen25VlPolicy(LanguagePolicy):
    """One Qwen2.5-VL model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen2_5_vl"
    has_one_axis = False
    checkpoint_names = (("model.language_model.", "model."), ("model.visual.", "visual."))
    encoder_prefixes = ("model.visual.",)
    encoder_class: ClassVar[type[QwenVisionEncoder]] = QwenVisionEncoder

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        encoder = self.encoder_class(model, processor, self.name)
        media = qwen_media_tokens(folder, model.config, processor.tokenizer)
        placeholder_id = media["video"].placeholder_id
        clock = self.tokens_per_second(model.config.vision_config)

        def place(expanded_ids: Sequence[int], media: Sequence[MediaReference]) -> Tensor:
            image_id = int(model.config.image_token_id)
            return qwen2_5_vl_positions(
                [placeholder_id if token == image_id else token for token in expanded_ids],  # same positions
                media,
                placeholder_id=placeholder_id,
                merge_size=encoder.merge_size,
                tokens_per_second=clock,
            )

        super().__init__(
            folder,
            model,
            processor,
            processor.tokenizer,
            store,
            media=media,
            positions=PositionRule(
                place=place,
                extent=partial(qwen2_5_vl_extent, merge_size=encoder.merge_size, tokens_per_second=clock),
            ),
            encoder=encoder,
        )

    @staticmethod
    def tokens_per_second(vision_config: Any) -> float:
        """Number of positions per second of video."""
        return float(vision_config.tokens_per_second)


def qwen_media_tokens(folder: Path, config: Any, tokenizer: Any) -> dict[str, MediaTokens]:
    """How models of the Qwen-VL series write media: a placeholder between two markers.

    Raises:
        EngineUsageError: The tokenizer isn't the model's.
    """
    start = check_token(folder, tokenizer, "<|vision_start|>", int(config.vision_start_token_id))
    end = check_token(folder, tokenizer, "<|vision_end|>", int(config.vision_end_token_id))
    placeholders = {
        "video": check_token(folder, tokenizer, "<|video_pad|>", int(config.video_token_id)),
        "image": check_token(folder, tokenizer, "<|image_pad|>", int(config.image_token_id)),
    }
    return {
        modality: MediaTokens(part={"type": modality}, written=(start, placeholder, end), placeholder_id=placeholder)
        for modality, placeholder in placeholders.items()
    }


class QwenVlFamily:
    """The common part of the Qwen-VL families; a subclass names its classes."""

    policy_class: ClassVar[Any]
    model_class: ClassVar[Any]
    processor_class: ClassVar[Any]
    tower_sections: ClassVar[tuple[str, ...]] = ("vision_config",)
    """Sections of the configuration with the towers, which run under ordinary attention."""

    @property
    def model_type(self) -> str:
        """See `Family.model_type`."""
        return str(self.policy_class.name)

    def load_policy(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        store: EmbeddingStore,
        device: torch.device,
        allow_pickle_weights: bool = False,
    ) -> LanguagePolicy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete checkpoint of this family.
        """
        self.refuse_unsupported(folder)
        attention = {"text_config": register_attention(), **dict.fromkeys(self.tower_sections, VISION_ATTENTION)}
        model = load_model(
            folder,
            self.model_type,
            model_class=self.model_class,
            dtype=dtype,
            attention=attention,
            allow_pickle_weights=allow_pickle_weights,
        )
        processor = load_processor(folder, self.model_type, processor_class=self.processor_class)
        return cast(LanguagePolicy, self.policy_class(folder, place(model, device), processor, store))

    def refuse_unsupported(self, folder: Path) -> None:
        """Refuse a checkpoint that transformers' class would load otherwise than it is meant; here there is none.

        Raises:
            EngineUsageError: The message names what isn't supported.
        """

    def lay_out(self, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`."""
        return cast(type[LanguagePolicy], self.policy_class).lay_out(folder, weights)


class Qwen25VlFamily(QwenVlFamily):
    """Loads Qwen2.5-VL checkpoints."""

    policy_class = Qwen25VlPolicy
    model_class = Qwen2_5_VLForConditionalGeneration
    processor_class = Qwen2_5_VLProcessor
