"""What went into a build, what was dropped and why: kept + dropped = input, at every stage."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from longvideo_reason_data.build_settings import BuildSettings
from longvideo_reason_data.dataset_folder import hash_records
from longvideo_reason_data.ledger import Ledger
from longvideo_reason_data.records import QuestionRecord

STAGES = ("videos", "segments", "questions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An item that isn't in the dataset, and why."""

    stage: str
    item: str
    reason: str
    detail: str


@dataclass(slots=True, kw_only=True)
class Accounts:
    """What went in and what was dropped, by stage."""

    num_input: Counter[str] = field(default_factory=Counter[str])
    dropped: list[Dropped] = field(default_factory=list[Dropped])

    def drop(self, stage: str, item: str, reason: str, detail: str = "") -> None:
        """Note an item that is left out."""
        self.dropped.append(Dropped(stage=stage, item=item, reason=reason, detail=" ".join(detail.split())[:300]))

    def num_kept(self, stage: str) -> int:
        """Count what is left of a stage."""
        return self.num_input[stage] - sum(item.stage == stage for item in self.dropped)

    def dropped_lines(self) -> str:
        """Write one JSON line per dropped item, in an order that doesn't depend on chance."""
        ordered = sorted(self.dropped, key=lambda item: (STAGES.index(item.stage), item.item))
        return "".join(f"{json.dumps(asdict(item), ensure_ascii=False)}\n" for item in ordered)


def make_manifest(
    records: Sequence[QuestionRecord],
    accounts: Accounts,
    ledger: Ledger,
    tokens: tuple[int, int],
    settings: BuildSettings,
) -> dict[str, Any]:
    """Sum up a build.

    Args:
        records: What is in the dataset.
        accounts: What went in and what was dropped.
        ledger: What was asked, and what it cost.
        tokens: Tokens read and written in all runs of this build.
        settings: What the build was told.

    Returns:
        The content of `manifest.json`. The cost is that of all runs, or None without prices; `cost_unconfirmed` is the
        most that calls may have cost besides whose end wasn't seen.
    """
    has_prices = bool(ledger.prices)
    return {
        "input": {stage: accounts.num_input[stage] for stage in STAGES},
        "kept": {stage: accounts.num_kept(stage) for stage in STAGES},
        "dropped": dict(sorted(Counter(item.reason for item in accounts.dropped).items())),
        "dropped_by_stage": {
            stage: dict(sorted(Counter(item.reason for item in accounts.dropped if item.stage == stage).items()))
            for stage in STAGES
        },
        "calls": {
            "made": ledger.num_made,
            "cached": ledger.num_cached,
            "failed": {str(outcome): count for outcome, count in sorted(ledger.num_failed.items())},
        },
        "tokens": {"prompt": tokens[0], "completion": tokens[1]},
        "cost": float(ledger.cost) if has_prices else None,
        "cost_unconfirmed": float(ledger.unconfirmed_cost) if has_prices else None,
        "settings": settings.model_dump(mode="json"),
        "dataset_hash": hash_records(records),
    }
