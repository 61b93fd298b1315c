"""Numbers derived from a run's seed: the same for the same place in the run, whatever happened in between.

Because every shuffle and every rollout has its own seed, a run can continue from its step number alone.
"""

import hashlib


def derive_seed(seed: int, *place: str | int) -> int:
    """A seed for one place of a run, such as `derive_seed(seed, "rollout", step)`; below 2**63."""
    text = "/".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
