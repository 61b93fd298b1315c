"""What will be encoded, and the layout of the result: known before anything is decoded."""

from dataclasses import dataclass

from mrsp_engine.embeddings.key import EmbeddingKey
from mrsp_engine.embeddings.reference import MediaReference

__all__ = ["EncodingPlan", "FrameLayout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLayout:
    """How frames of one size become embedding rows; known without decoding.

    Attributes:
        height: Rows of a frame as the encoder sees it.
        width: Columns of a frame.
        grid_thw: Patches in time, height and width before neighbours are merged.
        num_tokens: Embedding rows of the whole medium.
        frames_per_group: Frames that are encoded together and independently of all others.
        num_groups: Number of such groups; the last may be filled up by repeating its last frame.
        operations_per_group: Approximate floating-point operations of one group; used for balancing and planning.
        seconds_per_grid: See `MediaReference`.
        grid_seconds: See `MediaReference`.
    """

    height: int
    width: int
    grid_thw: tuple[int, int, int]
    num_tokens: int
    frames_per_group: int
    num_groups: int
    operations_per_group: float
    seconds_per_grid: float = 1.0
    grid_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingPlan:
    """What will be encoded, under which key, and the layout of the result: enough for any rank to do any part of it.

    Attributes:
        modality: Kind of medium.
        frame_indices: Which frames.
        layout: Layout of the embedding.
        embedding_key: Key of the embedding.
        key: Key of the store's entry; equal to `embedding_key` where the entry is the embedding.
    """

    modality: str
    frame_indices: tuple[int, ...]
    layout: FrameLayout
    embedding_key: EmbeddingKey
    key: EmbeddingKey

    @property
    def num_rows(self) -> int:
        """Rows of the store's entry: embeddings, or one for each group."""
        return self.layout.num_tokens if self.key.content == "embeddings" else self.layout.num_groups

    @property
    def rows_per_group(self) -> int:
        """Rows of the store's entry per group."""
        return self.num_rows // self.layout.num_groups

    @property
    def tokens_per_group(self) -> int:
        """Embedding rows of one group."""
        return self.layout.num_tokens // self.layout.num_groups

    @property
    def reference(self) -> MediaReference:
        """The reference to the whole embedding."""
        return MediaReference(
            key=self.embedding_key.digest,
            grid_thw=self.layout.grid_thw,
            seconds_per_grid=self.layout.seconds_per_grid,
            num_tokens=self.layout.num_tokens,
            modality=self.modality,
            grid_seconds=self.layout.grid_seconds,
        )
