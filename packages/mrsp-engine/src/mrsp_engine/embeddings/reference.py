"""A reference to an encoded medium: passed through the program instead of pixels and embeddings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReference:
    """Names an embedding in the store and gives its layout in space and time.

    Attributes:
        key: Digest of the store's key; covers content, frames, processor, encoder weights and dtype.
        grid_thw: Patches in time, height and width before the encoder merges neighbours.
        seconds_per_grid: Seconds between two temporal patches, already rounded to float32, because the sampler computes
            positions from that.
        num_tokens: Rows of the embedding, and so the number of placeholder tokens in an expanded prompt.
        modality: Kind of medium, such as "video", "image" or "audio".
        grid_seconds: Time of every temporal patch, for families that write it into the prompt; empty for the others.
    """

    key: str
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    num_tokens: int
    modality: str = "video"
    grid_seconds: tuple[float, ...] = ()
