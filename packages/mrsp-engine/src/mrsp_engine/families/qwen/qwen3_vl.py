"""Qwen3-VL: interleaved rotary axes, times written as text before every pair of frames, and DeepStack.

DeepStack adds features of middle layers of the vision tower to the first layers of the language model. The engine
concatenates all of them: embeddings are hidden size × (1 + levels) wide, with zeros after the first hidden size of
text, so that their rows are stored, split over ranks and differentiated like any others.

A video is written as `<0.5 seconds><|vision_start|>…<|vision_end|><1.5 seconds><|vision_start|>…`, as the model was
trained. Since version 5.10 transformers adds a second pair of markers around all of that; the engine does not.

Shape legend: B rows, S tokens, D hidden size, L levels.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.families.qwen.frame_sizes import write_time
from mrsp_engine.families.qwen.qwen2_5_vl import QwenVlFamily, qwen_media_tokens
from mrsp_engine.families.qwen.vision import Qwen3VisionEncoder, QwenVisionEncoder
from mrsp_engine.positions import qwen3_vl_extent, qwen3_vl_positions
from mrsp_engine.prompts import MediaTokens, PositionRule, Stretch


class TimedVideoPolicy(LanguagePolicy):
    """A model that reads the times of a video as text; Qwen3-VL and what followed."""

    has_one_axis = False
    encoder_prefixes = ("model.visual.",)
    encoder_class: ClassVar[type[QwenVisionEncoder]]

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        encoder = self.encoder_class(model, processor, self.name)
        media = qwen_media_tokens(folder, model.config, processor.tokenizer)
        media["video"] = _timed_video(media["video"], processor.tokenizer)
        placeholder_ids = {tokens.placeholder_id for tokens in media.values()}

        def place(expanded_ids: Sequence[int], media: Sequence[MediaReference]) -> Tensor:
            return qwen3_vl_positions(
                expanded_ids, media, placeholder_ids=placeholder_ids, merge_size=encoder.merge_size
            )

        super().__init__(
            folder,
            model,
            processor,
            processor.tokenizer,
            store,
            media=media,
            positions=PositionRule(place=place, extent=partial(qwen3_vl_extent, merge_size=encoder.merge_size)),
            encoder=encoder,
        )


class Qwen3VlPolicy(TimedVideoPolicy):
    """One Qwen3-VL model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen3_vl"
    encoder_class = Qwen3VisionEncoder

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        self._num_levels = len(model.config.vision_config.deepstack_visual_indexes)
        super().__init__(folder, model, processor, store)

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """See `Policy.embed_tokens`; [S] to [S, D × (1 + L)], zero after the first D."""
        embeddings = super().embed_tokens(token_ids)
        return pad(embeddings, (0, embeddings.shape[-1] * self._num_levels))

    def decoder_inputs(self, embeddings: Tensor) -> dict[str, Any]:
        """See `Policy.decoder_inputs`; the channels after the first D go to the first L layers."""
        first_BSD, *levels = embeddings.chunk(1 + self._num_levels, dim=-1)
        return {
            "inputs_embeds": first_BSD,
            # Whole rows instead of a mask of media: text only gets zeros added, and no tokens have to be looked for.
            "visual_pos_masks": torch.arange(len(first_BSD), device=embeddings.device),
            "deepstack_visual_embeds": levels,
        }


def _timed_video(tokens: MediaTokens, tokenizer: Any) -> MediaTokens:
    """Every temporal patch between its own markers, after its time."""
    start, placeholder, end = tokens.written

    def stretches(medium: MediaReference) -> list[Stretch]:
        times = (write_time(seconds) for seconds in medium.grid_seconds)
        written = (cast(list[int], tokenizer.encode(time, add_special_tokens=False)) for time in times)
        return [((*of_time, start), (end,)) for of_time in written]

    # The sampler replaces a placeholder with all of this, so its prompt has no markers around it.
    return MediaTokens(
        part=tokens.part,
        written=tokens.written,
        placeholder_id=placeholder,
        stretches=stretches,
        sampled=(placeholder,),
    )


class Qwen3VlFamily(QwenVlFamily):
    """Loads Qwen3-VL checkpoints."""

    policy_class = Qwen3VlPolicy
    model_class = Qwen3VLForConditionalGeneration
    processor_class = Qwen3VLProcessor
