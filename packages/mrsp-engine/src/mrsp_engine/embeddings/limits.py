"""The size limits of an embedding store, tier by tier."""

from dataclasses import dataclass

from mrsp_engine.errors import EngineUsageError

__all__ = ["StoreLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Budgets of the tiers.

    Attributes:
        device_bytes: Embeddings kept on the device for which they were requested.
        host_bytes: Embeddings kept in this process's memory; also used when the disk can't be written to. Larger ones
            are memory-mapped from disk.
        disk_bytes: All entries of the folder together; None for no limit, 0 to use no disk. Must be large enough for
            everything that a run refers to at one time.
    """

    device_bytes: int = 0
    host_bytes: int = 1 << 30
    disk_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("device_bytes", "host_bytes", "disk_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise EngineUsageError(f"{name}={value}: expected 0 or more bytes")
