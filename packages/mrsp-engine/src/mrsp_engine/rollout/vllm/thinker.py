"""Qwen2.5-Omni's thinker in vLLM with the trainer's positions, and with its order of a heard film.

vLLM 0.32 gives the markers before a film's pictures and sound a position each, where transformers, whose code is of the
model's authors, has one for both; and the order in which it writes a film isn't the one for which it computes positions
where a chunk has no frames. So the model is registered out of tree, with one method for each of the two that calls
`mrsp_engine.positions`. Nothing else of it is changed.
"""

from typing import Any

from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.audio_encoder import rows_of
from mrsp_engine.positions import FILM_SOUND, ThinkerClock, film_runs, qwen2_5_omni_positions

__all__ = ["with_trainers_order", "with_trainers_positions"]

HEARD = "use_audio_in_video"
"""The flag in a request's videos. As an option of a request it would change the names of media."""


def with_trainers_positions(model_class: Any) -> type:
    """A subclass of vLLM's model with the trainer's positions."""

    class TrainersPositions(model_class):
        """See the module docstring."""

        def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
            """Positions [3, P] of a prompt, and how far those of a response are from its tokens' numbers."""
            config = self.config
            positions = qwen2_5_omni_positions(
                input_tokens,
                _media_of(mm_features),
                placeholder_ids={config.video_token_index, config.image_token_index, config.audio_token_index},
                clock=_clock_of(config),
            )
            return positions, int(positions.max()) + 1 - len(input_tokens)

    return TrainersPositions


def with_trainers_order(processor_class: Any) -> type:
    """A subclass of vLLM's processor that writes a heard film as the trainer does."""

    class TrainersOrder(processor_class):
        """See the module docstring."""

        @classmethod
        def omni_get_updates_use_audio_in_video(
            cls, thinker_config: Any, audio_len: int, video_grid_thw: Any, video_second_per_grid_t: float
        ) -> list[int]:
            """The tokens that replace a film's placeholder, markers of its sound included."""
            clock = _clock_of(thinker_config)
            groups, height, width = (int(extent) for extent in video_grid_thw)
            rows_per_group = height * width // clock.merge_size**2
            tokens = [thinker_config.audio_start_token_id]
            for is_sound, first, last in film_runs(groups, rows_per_group, audio_len, video_second_per_grid_t, clock):
                token = thinker_config.audio_token_index if is_sound else thinker_config.video_token_index
                tokens += [token] * (last - first)
            return [*tokens, thinker_config.audio_end_token_id]

        def _postprocess_hf_mm_data(self, hf_data: Any, hf_kwargs: Any, processed_data: Any) -> Any:
            is_heard = processed_data.get(HEARD)
            data = super()._postprocess_hf_mm_data(hf_data, hf_kwargs, processed_data)
            if is_heard is not None:
                data[HEARD] = is_heard
            return data

        def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
            data, options = out_mm_kwargs.get_data(), dict(hf_processor_mm_kwargs)
            if HEARD in data and bool(data[HEARD]):
                options |= {HEARD: True, "second_per_grid_ts": data["second_per_grid_ts"].tolist()}
            return super()._get_prompt_updates(mm_items, options, out_mm_kwargs)

    return TrainersOrder


def _clock_of(config: Any) -> ThinkerClock:
    return ThinkerClock(
        merge_size=int(config.vision_config.spatial_merge_size),
        places_per_second=float(config.position_id_per_seconds),
        places_per_chunk=int(config.position_id_per_seconds * config.seconds_per_chunk),
    )


def _media_of(mm_features: Any) -> list[MediaReference]:
    """The media of a request in the trainer's order, as far as positions depend on them."""
    parts = sorted(mm_features, key=lambda feature: (feature.mm_position.offset, feature.modality != "video"))
    is_heard = any(bool(_value(feature, HEARD, False)) for feature in parts)
    media: list[MediaReference] = []
    for feature in parts:
        seconds, modality = 1.0, str(feature.modality)
        if modality == "audio":
            grid_thw = (rows_of(int(_value(feature, "audio_feature_lengths"))), 1, 1)
            modality = FILM_SOUND if is_heard else modality
        else:
            groups, height, width = (int(extent) for extent in _value(feature, f"{modality}_grid_thw"))
            grid_thw = groups, height, width
            seconds = float(_value(feature, "second_per_grid_ts", 1.0))
        media.append(
            MediaReference(
                key="", grid_thw=grid_thw, seconds_per_grid=seconds, num_tokens=grid_thw[0], modality=modality
            )
        )
    return media


def _value(feature: Any, name: str, default: Any = None) -> Any:
    found = (feature.data or {}).get(name)
    return default if found is None else found.data
