"""Which of few videos are for imitation, reward and evaluation.

The split of a video follows from its bytes and a seed (`longvideo_reason_data.records.splits`), so a small collection
may leave a split empty. Here the smallest seed is taken whose splits are nearest to their shares; a dataset keeps the
seed that it was built with, so videos that are added later don't move those that are there.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from longrl.errors import AppUsageError
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.records.folder import MANIFEST_NAME, read_manifest
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.records.splits import SplitFractions, assign_split

__all__ = ["list_split_options", "settle_splits"]

FEW_VIDEOS, MANY_VIDEOS = 30, 300
EVEN = SplitFractions(train_sft=0.3, train_rl=0.4, held_out=0.3)
NUM_SEEDS = 200


def settle_splits(settings: BuildSettings, digests: Sequence[str], dataset: Path) -> BuildSettings:
    """The settings of a build with splits that all have videos, unless they say themselves how to split.

    Args:
        settings: Of the build.
        digests: SHA-256 of every video.
        dataset: Where it is built; what is there already keeps its splits.

    Raises:
        AppUsageError: There are too few videos.
    """
    asked = BuildSettings()
    if (settings.splits, settings.seed) != (asked.splits, asked.seed):
        return settings
    if (dataset / MANIFEST_NAME).exists():
        saved = read_manifest(dataset).get("settings", {})
        known = BuildSettings.model_validate({name: saved[name] for name in ("splits", "seed") if name in saved})
        return settings.model_copy(update={"splits": known.splits, "seed": known.seed})
    if len(digests) < len(Split):
        raise AppUsageError(
            f"{len(digests)} videos: expected {len(Split)} or more, one each for imitation, reward and evaluation"
        )
    if len(digests) >= MANY_VIDEOS:
        return settings
    fractions = EVEN if len(digests) < FEW_VIDEOS else settings.splits
    seed = min(range(NUM_SEEDS), key=lambda number: (_unevenness(digests, fractions, number), number))
    return settings.model_copy(update={"splits": fractions, "seed": seed})


def list_split_options(source: Path, dataset: Path) -> list[str]:
    """The options with which `longvideo-data build` leaves no split of few videos empty; none for thirty or more.

    Args:
        source: A folder of videos, of which few are read whole.
        dataset: Where the dataset is to be built.

    Raises:
        UsageError: There is no such folder.
        DataError: A file can't be read.
    """
    paths = find_videos([source])
    if len(paths) >= FEW_VIDEOS:
        return []
    digests = sorted({digest_file(path) for path in paths})
    if len(digests) < len(Split):
        return []
    asked, settled = BuildSettings(), settle_splits(BuildSettings(), digests, dataset)
    shares = {split: getattr(settled.splits, split.value) for split in Split}
    changed = [
        f"--splits.{split.value.replace('_', '-')} {share:g}"
        for split, share in shares.items()
        if share != getattr(asked.splits, split.value)
    ]
    return changed + [f"--seed {settled.seed}"] * (settled.seed != asked.seed)


def _unevenness(digests: Sequence[str], fractions: SplitFractions, seed: int) -> tuple[int, float]:
    """How many splits are empty, and how far the others are from their shares."""
    found = Counter(assign_split(digest, fractions, seed=seed) for digest in digests)
    shares = {split: getattr(fractions, split.value) for split in Split}
    distance = sum(abs(found[split] - len(digests) * share) for split, share in shares.items())
    return sum(not found[split] for split in Split), distance
