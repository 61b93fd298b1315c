"""Statistics of scores: standard errors for questions that share a video, and whether two models differ.

Questions about one video aren't independent, so the video is the unit that is resampled. The module is independent of
what a score is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
_AT_ONCE = 500  # resamples in memory


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def clustered_standard_error(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Standard error of the mean for clustered values.

    `sqrt(sum over clusters of (sum of the cluster's deviations)^2) / n`; with clusters of one value it is the ordinary
    standard error with divisor n. Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), section 2.2.
    """
    center = mean(values)
    deviations: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        deviations[cluster] = deviations.get(cluster, 0.0) + value - center
    return math.sqrt(math.fsum(deviation**2 for deviation in deviations.values())) / max(1, len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval95:
    """The 95 % interval of a mean difference."""

    low: float
    high: float


def bootstrap_interval(differences: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> Interval95:
    """The percentile interval of the mean of paired differences, resampling whole clusters with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; clusters as in Miller (arXiv
    2411.00640), section 2.2. With one cluster the interval is the mean alone.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + difference
        counts[cluster] = counts.get(cluster, 0) + 1
    sum_V, count_V = np.array(list(sums.values())), np.array(list(counts.values()))
    generator = np.random.default_rng(seed)
    means: list[float] = []
    for start in range(0, NUM_RESAMPLES, _AT_ONCE):
        chosen = generator.integers(0, len(sum_V), size=(min(_AT_ONCE, NUM_RESAMPLES - start), len(sum_V)))
        means += (sum_V[chosen].sum(axis=1) / count_V[chosen].sum(axis=1)).tolist()
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Interval95(low=low, high=high)


def mcnemar_p_value(num_only_first: int, num_only_second: int) -> float:
    """Probability of so unequal a split of the discordant pairs, or one more unequal, if both are equally good.

    The exact two-sided test: McNemar, "Note on the sampling error of the difference between correlated proportions"
    (Psychometrika 12, 1947), with the binomial distribution.
    """
    total, fewer = num_only_first + num_only_second, min(num_only_first, num_only_second)
    tail = term = 1  # whole numbers, exact; the next binomial coefficient follows from the last
    for count in range(fewer):
        term = term * (total - count) // (count + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)
