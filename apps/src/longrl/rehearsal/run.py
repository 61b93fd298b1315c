"""A rehearsal from request to findings: the model's folder, the ranks, and the planner's prediction beside them."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longrl.corpus import corpus_of_stories
from longrl.rehearsal.request import RehearsedStage, RehearsedVideos, StepLimits
from longrl.rehearsal.step import CHECKPOINT_STAGE, RankStep, StepFacts
from longrl.tiny_model import build_tiny_model
from mrsp_engine.planner.checkpoints import read_shape
from mrsp_engine.planner.costs import Sizes
from mrsp_engine.planner.memory import RUNTIME_BYTES, Strategy, memory_by_part
from mrsp_engine.rehearsal.checkpoints import write_without_weights
from mrsp_engine.rehearsal.memory import Peak
from mrsp_engine.rehearsal.messages import Exchange
from mrsp_engine.rehearsal.processes import RankRecord, rehearse_ranks

__all__ = ["Findings", "rehearse"]

PLANNED_STAGE = "update"
"""The stage of the step that the planner predicts."""
LOADING = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a rehearsal found.

    Attributes:
        stage: What was rehearsed.
        facts: Sizes of the step.
        ranks: What every rank did.
        planned: The planner's prediction of the update's peak, by part.
    """

    stage: RehearsedStage
    facts: StepFacts
    ranks: Sequence[RankRecord[StepFacts]]
    planned: dict[str, float]

    @property
    def peak_bytes(self) -> int:
        """The most that any rank holds in any stage, with what driver and communication take."""
        return max(self.peak_of(rank)[1].num_bytes for rank in range(len(self.ranks))) + round(RUNTIME_BYTES)

    def peak_of(self, rank: int) -> tuple[str, Peak]:
        """The stage in which a rank holds most, and its peak there."""
        peaks = self.ranks[rank].peaks
        return max(((name, peak) for name, peak in peaks.items() if name), key=lambda item: item[1].num_bytes)

    @property
    def collectives(self) -> dict[str, dict[str, int]]:
        """Exchanges by kind: their number and bytes, of the rank with the most."""
        return _count(rank.exchanges for rank in self.ranks)

    @property
    def checkpoint_exchanges(self) -> dict[str, dict[str, int]]:
        """Those of them in which ranks agree on a checkpoint."""
        return _count(
            [exchange for exchange in rank.exchanges if exchange.place == CHECKPOINT_STAGE] for rank in self.ranks
        )

    @property
    def errors(self) -> dict[str, float]:
        """By how much the planner is off, by part: predicted over rehearsed, less 1; of parts it predicts."""
        rehearsed = self.ranks[0].peaks[PLANNED_STAGE].parts
        return {
            name: planned / rehearsed[name] - 1 for name, planned in self.planned.items() if rehearsed.get(name, 0) > 0
        }

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "stage": self.stage.name,
            "ranks": [
                {
                    "rank": rank,
                    "peak_bytes": self.peak_of(rank)[1].num_bytes,
                    "stage": self.peak_of(rank)[0],
                    "place": self.peak_of(rank)[1].place,
                    "parts": self.peak_of(rank)[1].parts,
                    "stages": {
                        name: {"peak_bytes": peak.num_bytes, "parts": peak.parts, "place": peak.place}
                        for name, peak in record.peaks.items()
                        if name
                    },
                    "flops": record.operations,
                }
                for rank, record in enumerate(self.ranks)
            ],
            "collectives": self.collectives,
            "same_order": True,
            "checkpoint": {
                "ranks": [asdict(rank.result.checkpoint) for rank in self.ranks],
                "collectives": self.checkpoint_exchanges,
            },
            "flops": max(sum(record.operations.values()) for record in self.ranks),
            "planned": self.planned,
            "planned_errors": self.errors,
            "step": {
                "prompt_tokens": self.facts.prompt_tokens,
                "row_tokens": self.facts.layout.total,
                "rows": self.facts.num_rows,
                "sequence_ranks": self.facts.sequence_ranks,
                "is_sharded": self.facts.is_sharded,
                "too_long": self.facts.too_long,
            },
        }


def rehearse(
    stage: RehearsedStage, *, num_ranks: int, memory_bytes: float, videos: RehearsedVideos, limits: StepLimits
) -> Findings:
    """Rehearse one step of a stage.

    Raises:
        EngineUsageError: The ranks would wait for each other forever; or the model can't be rehearsed.
        TrainerUsageError: The recipe's settings are impossible on so many ranks.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        folder, source = Path(scratch) / "model", stage.model
        if stage.tiny_model is not None:
            source = str(Path(scratch) / "tiny")
            build_tiny_model(Path(source), corpus_of_stories(), stage.tiny_model, seed=0)
        write_without_weights(str(source), folder, num_layers=limits.num_layers)
        program = RankStep(
            stage=stage, folder=folder, scratch=Path(scratch), videos=videos, limits=limits, memory_bytes=memory_bytes
        )
        ranks = rehearse_ranks(program, num_ranks)
        facts = ranks[0].result
        return Findings(stage=stage, facts=facts, ranks=ranks, planned=_plan(stage, facts, folder, num_ranks))


def _count(by_rank: Iterable[Sequence[Exchange]]) -> dict[str, dict[str, int]]:
    """Exchanges by kind: their number and bytes, of the rank with the most."""
    found: dict[str, dict[str, int]] = {}
    for exchanges in by_rank:
        counts: Counter[str] = Counter()
        num_bytes: Counter[str] = Counter()
        for exchange in exchanges:
            counts[exchange.kind] += 1
            num_bytes[exchange.kind] += exchange.num_bytes
        for kind, count in counts.items():
            before = found.setdefault(kind, {"count": 0, "bytes": 0})
            before["count"], before["bytes"] = max(before["count"], count), max(before["bytes"], num_bytes[kind])
    return dict(sorted(found.items()))


def _plan(stage: RehearsedStage, facts: StepFacts, folder: Path, num_ranks: int) -> dict[str, float]:
    shape = replace(read_shape(folder), lora_rank=facts.lora_rank)
    sizes = Sizes(
        num_frames=facts.num_frames,
        frame_pixels=facts.frame_pixels,
        group_size=facts.group_size,
        response_tokens=facts.response_tokens,
        prompt_tokens=facts.prompt_tokens,
    )
    planned = memory_by_part(
        shape,
        sizes,
        facts.layout,
        rows_tokens=facts.layout.total,
        sequence_ranks=facts.sequence_ranks,
        all_ranks=num_ranks,
        strategy=Strategy(
            is_checkpointed=stage.config.activation_checkpointing != "none",
            sharding="everything" if facts.is_sharded else "none",
        ),
        has_reference=facts.has_reference,
    )
    return {name: num_bytes for name, num_bytes in planned.items() if name != "runtime" and num_bytes}
