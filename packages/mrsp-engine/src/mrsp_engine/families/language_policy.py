"""The common part of all families: a causal language model of transformers, run on embeddings from any source.

The language model runs under the engine's attention (`mrsp_engine.attention`). The constructor receives which media a
family accepts, how they are encoded and written, and how positions are computed; a family is little more than these
arguments.

Shape legend: P prompt tokens, S row tokens, D hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrsp_engine.attention.plan import AttentionPlan
from mrsp_engine.distributed.sharded_weights import gather_weights, has_first_parts, whole_tensor
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.encoding.frame_encoder import FrameEncoder
from mrsp_engine.encoding.video import Video
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.chat_prompts import TURN_START, ChatPrompts, check_token
from mrsp_engine.families.checkpoints import write_checkpoint
from mrsp_engine.families.copies import write_copy
from mrsp_engine.prompts import ONE_AXIS, MediaTokens, PositionRule, Prompt

__all__ = ["LanguagePolicy"]


class LanguagePolicy(Policy):
    """One model with its tokenizer; see `Policy` for the members.

    Args:
        folder: The folder it was loaded from.
        model: The whole model.
        processor: The processor with the chat template, or the tokenizer itself.
        tokenizer: The tokenizer.
        store: The store of embeddings.
        causal_model: The part of `model` with decoder and head; the model itself by default.
        media: How media are written, by modality.
        positions: The rule for positions.
        encoder: Encodes videos and images, for families with vision.
    """

    checkpoint_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Prefixes of weight names in transformers' class, and in checkpoint files where they differ."""

    encoder_prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes, in transformers' class, of the encoder's weight names; unused by a sampler that gets embeddings."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        processor: Any,
        tokenizer: Any,
        store: EmbeddingStore,
        *,
        causal_model: Any = None,
        media: Mapping[str, MediaTokens] | None = None,
        positions: PositionRule = ONE_AXIS,
        encoder: FrameEncoder | None = None,
    ) -> None:
        self.folder = folder
        self.source = folder
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.store = store
        self.encoder = encoder
        self._causal_model: Any = model if causal_model is None else causal_model
        self._decoder: Any = self._causal_model.get_decoder()
        config = self._decoder.config
        layer_types: Sequence[str] = getattr(config, "layer_types", None) or ()
        if "sliding_attention" in layer_types:
            raise EngineUsageError(f"{folder}: sliding-window attention is not supported; set use_sliding_window=false")
        check_token(folder, tokenizer, TURN_START)
        # An explicit "no mask" per kind of layer keeps transformers from building one from the positions.
        self._no_mask: dict[str, None] | None = dict.fromkeys(layer_types) or None
        self._placeholders: dict[str, int] = {}
        for modality, tokens in (media or {}).items():
            self._placeholders[modality] = tokens.placeholder_id
            if tokens.companion is not None:
                self._placeholders[tokens.companion.modality] = tokens.companion.placeholder_id
        self._placeholder_ids = sorted(set(self._placeholders.values()))
        self.vocab_size = int(config.vocab_size)
        self._prompts = ChatPrompts(processor, tokenizer, media or {}, positions, num_embedded=self.vocab_size)
        ends = self._causal_model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self.end_token_ids = tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)

    def encode_video(
        self, video: Video, frame_indices: Sequence[int], *, budget: FrameBudget = UNLIMITED
    ) -> MediaReference:
        """See `Policy.encode_video`."""
        return self._require_encoder("video").refer(video, frame_indices, self.store, budget)

    def encode_image(self, image: Video) -> MediaReference:
        """See `Policy.encode_image`."""
        return self._require_encoder("image").refer_image(image, self.store)

    def tokenise(self, text: str) -> tuple[int, ...]:
        """See `Policy.tokenise`."""
        return self._prompts.tokens(text)

    def build_prompt(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> Prompt:
        """See `Policy.build_prompt`."""
        return self._prompts.build(text, media, system)

    def prompt_length(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> int:
        """See `Policy.prompt_length`."""
        return self._prompts.length(text, media, system)

    def prompt_positions(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> int:
        """See `Policy.prompt_positions`."""
        return self._prompts.num_positions(text, media, system)

    def build_shared_prompt(
        self, media: Sequence[MediaReference], *, system: str | None = None
    ) -> tuple[Prompt, Callable[[str], tuple[int, ...]]]:
        """See `Policy.build_shared_prompt`; without media the cut is at the start of the user's turn."""
        return self._prompts.build_shared(media, system)

    def embed(self, prompt: Prompt) -> Tensor:
        """See `Policy.embed`."""
        token_ids = torch.tensor(prompt.expanded_ids, dtype=torch.int64, device=self.device)
        is_media = self._stand_for_media(token_ids)
        embeddings = self.embed_tokens(token_ids.masked_fill(is_media, 0))  # [P, D]
        if not prompt.media:
            return embeddings
        stored = torch.cat([self._stored(medium, embeddings.shape[1]) for medium in prompt.media])
        places = torch.cat([tokens for _, tokens in self._tokens_of_media(prompt)]).to(self.device)
        return embeddings.index_copy(0, places, stored.to(embeddings))

    def embed_rows(self, prompt: Prompt, tokens: Tensor) -> Tensor:
        """See `Policy.embed_rows`; of each medium, only the rows that these tokens represent are read."""
        expanded_ids = torch.tensor(prompt.expanded_ids, dtype=torch.int64)
        chosen = tokens.cpu()
        is_media = self._stand_for_media(expanded_ids)
        token_ids = expanded_ids.masked_fill(is_media, 0)[chosen]
        embeddings = self.embed_tokens(token_ids.to(self.device))  # [T, D]
        stored, places = list[Tensor](), list[Tensor]()
        for medium, own_tokens in self._tokens_of_media(prompt):
            places.append(torch.nonzero(torch.isin(chosen, own_tokens)).squeeze(1))
            own = torch.searchsorted(own_tokens, chosen[places[-1]])  # rows of this medium
            # Rows that ranks gather with gradients: the backward pass must visit them even where none are used.
            nothing = [(0, 0)] if self.store.lends(medium.key) else []
            stored += [self._stored(medium, embeddings.shape[1], run) for run in _runs(own) or nothing]
        if not stored:
            return embeddings
        return embeddings.index_copy(0, torch.cat(places).to(embeddings.device), torch.cat(stored).to(embeddings))

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """See `Policy.embed_tokens`."""
        return cast(Tensor, self._decoder.embed_tokens(token_ids))

    def hidden_states(self, embeddings: Tensor, positions: Tensor, plan: AttentionPlan | None = None) -> Tensor:
        """See `Policy.hidden_states`; with a plan split over ranks, only this rank's tokens of the row."""
        extra = {} if plan is None else {"attention_plan": plan}
        positions = positions.to(embeddings.device)
        output = self._decoder(
            **self.decoder_inputs(embeddings[None]),
            position_ids=positions if positions.shape[0] == 1 else positions[:, None],
            attention_mask=self._no_mask,
            use_cache=False,
            **extra,
        )
        return cast(Tensor, output.last_hidden_state)[0]

    @property
    def decoder(self) -> nn.Module:
        """See `Policy.decoder`."""
        return cast(nn.Module, self._decoder)

    @property
    def causal_model(self) -> nn.Module:
        """See `Policy.causal_model`."""
        return cast(nn.Module, self._causal_model)

    @property
    def language_model_head(self) -> nn.Module:
        """See `Policy.language_model_head`."""
        return cast(nn.Module, self._causal_model.lm_head)

    def freeze_vision(self) -> None:
        """See `Policy.freeze_vision`; a text-only model has no encoder to freeze."""
        if self.encoder is not None:
            self.encoder.set_trainable(tower=False, projector=False)

    def save(self, folder: Path, *, exact: bool = False) -> None:
        """See `Policy.save`."""
        weights, outside = self.checkpoint_weights(), (folder, self.store.folder)
        if any(tensor.is_meta for part in weights.values() for tensor in part.values()):
            return  # another rank has the weights
        write_checkpoint(
            folder, lambda temporary: write_copy(self.source, temporary, weights, exact=exact, outside=outside)
        )

    def checkpoint_weights(self) -> dict[str, dict[str, Tensor]]:
        """All weights, by the checkpoint folder that contains them and the names they may have there."""
        return self.lay_out(self.source, self.weights_to_save(self.model))

    @classmethod
    def lay_out(cls, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`; every name that files may use for a weight, the usual one first."""
        return {"": {cls.checkpoint_name(name): tensor for name, tensor in weights.items()} | dict(weights)}

    def weights_to_save(self, module: nn.Module) -> dict[str, Tensor]:
        """All weights of a part of the model, with adapters merged; see `gather_weights` for sharded ones."""
        named: Iterable[tuple[str, Tensor]] = module.state_dict(keep_vars=True).items()
        if self.adapters is not None:
            named = self.adapters.merged_weights(module, device=torch.device("cpu"))
        return gather_weights(named, is_kept=has_first_parts(self.model), dtype=self.dtype)

    def weights_to_sample(self, module: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """The same one by one, where the model is."""
        return (
            module.state_dict(keep_vars=True).items() if self.adapters is None else self.adapters.merged_weights(module)
        )

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; the encoder only if it is trained, never a head tied to the input.

        Weights sharded by FSDP2 come as they are, in the dtype of the model's computations; those by ZeRO-3 whole.
        """
        is_tied = self.language_model_head.get_parameter("weight") is self._decoder.embed_tokens.weight
        is_encoder_trained = any(
            parameter.requires_grad
            for name, parameter in self.model.named_parameters()
            if name.startswith(self.encoder_prefixes)
        )
        for name, tensor in self.weights_to_sample(self.model):
            if name.startswith(self.encoder_prefixes) and not is_encoder_trained:
                continue
            if name != "lm_head.weight" or not is_tied:
                yield self.checkpoint_name(name), self.as_computed(tensor)

    def as_computed(self, tensor: Tensor) -> Tensor:
        """A weight in the dtype of the model's computations, which is its own unless FSDP2 has sharded it."""
        return tensor.detach().to(self.dtype) if isinstance(tensor, DTensor) else whole_tensor(tensor).detach()

    @classmethod
    def checkpoint_name(cls, name: str) -> str:
        """See `Policy.checkpoint_name`."""
        for ours, theirs in cls.checkpoint_names:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def _tokens_of_media(self, prompt: Prompt) -> list[tuple[MediaReference, Tensor]]:
        """Every medium and the tokens of its rows, ascending; media with different placeholders may be interleaved."""
        expanded_ids = torch.tensor(prompt.expanded_ids, dtype=torch.int64)
        free = {token: torch.nonzero(expanded_ids == token).squeeze(1) for token in self._placeholder_ids}
        found: list[tuple[MediaReference, Tensor]] = []
        for medium in prompt.media:
            token = self._placeholders[medium.modality]
            found.append((medium, free[token][: medium.num_tokens]))
            free[token] = free[token][medium.num_tokens :]
        return found

    def _stand_for_media(self, token_ids: Tensor) -> Tensor:
        """Which tokens represent rows of media; their rows in the input embedding may be missing and are never used."""
        return torch.isin(token_ids, torch.tensor(self._placeholder_ids, dtype=torch.int64, device=token_ids.device))

    def _require_encoder(self, modality: str) -> FrameEncoder:
        if self.encoder is None:
            raise EngineUsageError(
                f"{self.folder}: a model of type {self.name} accepts no {modality}; set another model folder"
            )
        return self.encoder

    def _stored(self, medium: MediaReference, width: int, rows: tuple[int, int] | None = None) -> Tensor:
        """A medium's embedding, or some of its rows."""
        tensor = self.store.get(medium.key) if rows is None else self.store.read_rows(medium.key, *rows)
        if tensor is None:
            raise EngineError(
                f"embedding {medium.key[:12]}… is not in the store {self.store.folder}; "
                f"encode the {medium.modality} again or set the store folder it was encoded into"
            )
        expected = (medium.num_tokens if rows is None else rows[1] - rows[0], width)
        if tuple(tensor.shape) != expected:
            raise EngineError(
                f"embedding {medium.key[:12]}… has shape {tuple(tensor.shape)}, expected {expected}; "
                "it was made for another model"
            )
        return tensor


def _runs(rows: Tensor) -> list[tuple[int, int]]:
    """The contiguous runs in ascending row numbers: first row, and the row after the last."""
    if not len(rows):
        return []
    breaks = torch.nonzero(rows.diff() != 1).squeeze(1)
    firsts, lasts = torch.cat((rows[:1], rows[breaks + 1])), torch.cat((rows[breaks], rows[-1:]))
    return [(first, last + 1) for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)]
