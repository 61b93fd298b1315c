"""The interface between the engine and one family of models.

A family defines how its checkpoints are loaded, how pixels become embeddings, how a conversation becomes tokens and
positions, and how its language model runs on embeddings. It does not depend on groups, losses, a trainer's ranks or the
sampler. `Policy` is one loaded checkpoint of a family.

Shape legend: P prompt tokens, S tokens of a packed row, B rows, D hidden size. Embeddings may be wider than the hidden
states: a family that adds features to several layers concatenates all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.attention.plan import AttentionPlan
from mrsp_engine.distributed.sharded_weights import is_sharded
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.encoding.frame_encoder import FrameEncoder
from mrsp_engine.encoding.video import Video
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.adapters import Adapters, JointPasses
from mrsp_engine.families.weight_slices import WeightSlices
from mrsp_engine.prompts import Prompt
from mrsp_engine.rotary import longest_context

VisionPart = Literal["frozen", "projector", "all"]
"""The trained part of the media encoder: none, the projector between tower and language model, or the tower too."""


class Policy(ABC):
    """One loaded checkpoint.

    Attributes:
        name: The family's name, equal to `model_type` in the checkpoint's config.json.
        has_one_axis: Whether every token takes a position of its own.
        folder: Where the checkpoint was loaded from.
        source: The checkpoint from which a saved one takes its layout and all files except the weights; `folder` unless
            set.
        model: The Hugging Face model.
        adapters: What is trained instead of the model's own weights, if anything.
        tokenizer: The checkpoint's tokenizer.
        store: The store of embeddings.
        encoder: What encodes videos and images frame by frame; None for models without vision.
        end_token_ids: Tokens that end a response.
        vocab_size: Number of rows of the language model's head.
        rehearsed_memory_bytes: Memory of the GPU that a rehearsal stands for (`mrsp_engine.rehearsal`); None elsewhere.
        row_scorer: What all training calls; see `mrsp_engine.row_scorer.row_scorer_of`.
        computed_dtype: The dtype of the model's computations where sharded weights are kept in a finer one.
        computed_device: The device of the model's computations where sharded weights are kept in host memory.
        unread: The weights of a language model that is built and not read yet, which `mrsp_engine.sharding` does.
        joint_passes: What runs `row_scorer` and its backward passes in its place, where gradients are added up during
            these passes by something other than FSDP2.
    """

    name: ClassVar[str]
    has_one_axis: ClassVar[bool] = True
    folder: Path
    source: Path
    model: nn.Module
    adapters: Adapters | None = None
    tokenizer: Any
    store: EmbeddingStore
    encoder: FrameEncoder | None = None
    end_token_ids: tuple[int, ...]
    vocab_size: int
    rehearsed_memory_bytes: float | None = None
    row_scorer: nn.Module | None = None
    computed_dtype: torch.dtype | None = None
    computed_device: torch.device | None = None
    unread: WeightSlices | None = None
    joint_passes: JointPasses | None = None

    @abstractmethod
    def encode_video(
        self, video: Video, frame_indices: Sequence[int], *, budget: FrameBudget = UNLIMITED
    ) -> MediaReference:
        """Return a reference to the given frames, encoding them only if the store does not hold them yet.

        Raises:
            UnfitMediumError: The model doesn't accept such frames, or they exceed the budget.
        """

    @abstractmethod
    def encode_image(self, image: Video) -> MediaReference:
        """Return a reference to an image (a `Video` of one frame), encoding it only if the store does not hold it yet.

        Raises:
            EngineUsageError: The model accepts no images.
        """

    @abstractmethod
    def tokenise(self, text: str) -> tuple[int, ...]:
        """The tokens of a text by itself, without special ones; those of short texts are remembered."""

    @abstractmethod
    def build_prompt(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> Prompt:
        """Lay out one user turn (media first, then `text`) followed by the start of the assistant's turn."""

    @abstractmethod
    def prompt_length(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> int:
        """Number of tokens that `build_prompt` would return for the same arguments, without building the prompt."""

    def prompt_positions(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> int:
        """Number of its positions, without building it; with several axes fewer than tokens, or more for far frames."""
        return self.prompt_length(text, media, system=system)

    @abstractmethod
    def build_shared_prompt(
        self, media: Sequence[MediaReference], *, system: str | None = None
    ) -> tuple[Prompt, Callable[[str], tuple[int, ...]]]:
        """Split a prompt at the point where questions begin to differ.

        Returns the part up to and including the media, and a function from a question's text to the tokens that
        remain: `prefix.expanded_ids + tail(text) == build_prompt(text, media).expanded_ids` for every text.
        """

    @abstractmethod
    def embed(self, prompt: Prompt) -> Tensor:
        """Return the prompt's input embeddings [P, D] with media taken from the store."""

    def embed_rows(self, prompt: Prompt, tokens: Tensor) -> Tensor:
        """Return the input embeddings of some of the prompt's tokens: int64 [T], ascending, to [T, D].

        A family whose store can read part of a medium reads only that part.
        """
        return self.embed(prompt).index_select(0, tokens)

    @abstractmethod
    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings of plain tokens: int64 [S] to [S, D]."""

    @abstractmethod
    def hidden_states(self, embeddings: Tensor, positions: Tensor, plan: AttentionPlan | None = None) -> Tensor:
        """Run the language model over one row of embeddings [S, D] at positions [axes, S]; returns [S, D].

        Without a plan the row is one ordinary causal sequence. With a plan, attention follows it.
        """

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The language model without its head; accepts `decoder_inputs` and positions; fills a cache if given."""

    @property
    @abstractmethod
    def causal_model(self) -> nn.Module:
        """The part of the model with decoder and head, as transformers loads it by itself; adapters are named in it."""

    def decoder_inputs(self, embeddings: Tensor) -> dict[str, Any]:
        """The decoder's inputs for embeddings [B, S, D] as `embed` and `embed_tokens` return them."""
        return {"inputs_embeds": embeddings}

    @property
    @abstractmethod
    def language_model_head(self) -> nn.Module:
        """The module that turns hidden states into logits."""

    @abstractmethod
    def freeze_vision(self) -> None:
        """Exclude the media encoder (tower and projector) from training."""

    def train_vision(self, part: VisionPart) -> None:
        """Include a part of the media encoder in training, and exclude the rest.

        Raises:
            EngineUsageError: The model has no such part that the engine can train.
        """
        if part == "frozen":
            self.freeze_vision()
            return
        if self.encoder is None:
            raise EngineUsageError(
                f'train_vision="{part}": a model of type {self.name} has no vision that can be trained; '
                'set train_vision to "frozen"'
            )
        if part == "projector" and not self.encoder.has_projector:
            raise EngineUsageError(
                f'train_vision="projector": the projector of a model of type {self.name} is not separate from its '
                'tower; set train_vision to "frozen" or "all"'
            )
        self.encoder.set_trainable(tower=part == "all", projector=True)

    @abstractmethod
    def save(self, folder: Path, *, exact: bool = False) -> None:
        """Write a checkpoint like `source`, with the model's weights; complete or not at all.

        If the weights are sharded, all ranks call this together, and the first one writes.

        Args:
            folder: The output folder; an older checkpoint there is replaced.
            exact: Write the weights in their training dtype, to resume from, instead of the dtype they were published
                in.

        Raises:
            EngineError: Writing failed, or `source` no longer exists.
        """

    @abstractmethod
    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that a sampler needs after an update, under the checkpoint's names."""

    @classmethod
    @abstractmethod
    def checkpoint_name(cls, name: str) -> str:
        """A weight's name in checkpoint files, from its name in transformers' class."""

    def save_adapter(self, folder: Path) -> None:
        """Write the adapters for a sampler that has the model's own weights.

        Raises:
            EngineUsageError: The model has none.
        """
        if self.adapters is None:
            raise EngineUsageError(f"{self.folder}: the model has no adapters; let the sampler take whole weights")
        self.adapters.write_for_sampler(folder, self.checkpoint_name)

    @property
    def attention_heads(self) -> AttentionHeads:
        """The heads of the language model."""
        config = cast(Any, self.model).config.get_text_config()
        channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return AttentionHeads(
            query=int(config.num_attention_heads), key=int(config.num_key_value_heads), channels=int(channels)
        )

    @property
    def key_value_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers that have them."""
        heads, config = self.attention_heads, cast(Any, self.model).config.get_text_config()
        num_layers = config.num_hidden_layers - (getattr(config, "layer_types", None) or []).count("linear_attention")
        return 2 * heads.key * heads.channels * num_layers * self.dtype.itemsize

    @property
    def max_positions(self) -> int:
        """Number of positions of a sequence, as trained or as extended by the rotary positions."""
        return longest_context(cast(Any, self.model).config.get_text_config().to_dict())

    @property
    def is_sharded(self) -> bool:
        """Whether every rank holds a part of the weights only."""
        return is_sharded(self.model)

    @property
    def is_joint(self) -> bool:
        """Whether all ranks must make the same passes together, because weights or gradients are sharded."""
        return self.joint_passes is not None or self.is_sharded

    @property
    def device(self) -> torch.device:
        """Device of the model's computations: that of its parameters, unless they are in host memory meanwhile."""
        return self.computed_device or next(self.model.parameters()).device

    @property
    def device_type(self) -> str:
        """Kind of device ("cpu", "cuda") by which rows are divided; in a rehearsal that of the GPU it stands for."""
        return self.device.type if self.rehearsed_memory_bytes is None else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the language model computes: that of its parameters, unless they are sharded."""
        return self.computed_dtype or next(self.language_model_head.parameters()).dtype


class Family(Protocol):
    """The object of an entry point in the group `mrsp_engine.families`, named after the checkpoint's `model_type`."""

    @property
    def model_type(self) -> str:
        """The `model_type` of the checkpoints this family loads."""
        ...

    def load_policy(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        store: EmbeddingStore,
        device: torch.device,
        allow_pickle_weights: bool = False,
    ) -> Policy:
        """Load the checkpoint in `folder`, from safetensors alone unless pickles are allowed."""
        ...

    def lay_out(self, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Weights named as in the model, by the folder of the checkpoint ("" for itself) and the names there."""
        ...
