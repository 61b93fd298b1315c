"""Filtering a dataset in its folder: in come all its questions, out the fit ones with their pass rates.

What is dropped isn't lost: `unfiltered.parquet` holds every question that ever came in, with its pass rates, and the
next run starts from it. So filtering twice is filtering once, and filtering with other thresholds asks nobody anew.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longvideo_reason_data.answering import ANSWERING_PROMPTS
from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.benchmarks import read_benchmark
from longvideo_reason_data.dataset_checks import describe_pass_rates
from longvideo_reason_data.dataset_folder import MANIFEST_NAME, RECORDS_NAME, RESPONSES_NAME, hash_records, read_dataset
from longvideo_reason_data.drop_reasons import Reason, Verdict
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.filter_settings import FilterSettings
from longvideo_reason_data.language_model import LanguageModel, Ledger
from longvideo_reason_data.option_order import balance_options
from longvideo_reason_data.prompt_files import load_prompts
from longvideo_reason_data.question_filter import DroppedQuestion, Filtered, FilterModels, QuestionFilter
from longvideo_reason_data.records import QuestionRecord, describe_invalid, read_records, write_records
from longvideo_reason_data.response_cache import ResponseCache

UNFILTERED_NAME = "unfiltered.parquet"
REPORT_NAME = "filters.json"
SEGMENTS_NAME = "segments.jsonl"


class _DescribedSegment(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    video_digest: Annotated[str, Field(validation_alias=AliasChoices("video_digest", "digest"))]
    start_seconds: float
    end_seconds: float
    caption: str
    speech: str = ""


def filter_folder(
    dataset: Path,
    *,
    base_url: str,
    models: FilterModels,
    settings: FilterSettings,
    benchmarks: Sequence[Path] = (),
    prompts_folder: Path | None = None,
    num_parallel: int = 16,
    timeout_seconds: float = 300.0,
    seed: int = 0,
    console: Console | None = None,
) -> tuple[dict[str, Any], Ledger]:
    """Filter a dataset in place.

    Args:
        dataset: Its folder.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including `/v1`.
        models: Who is asked.
        settings: How, and what is kept.
        benchmarks: Files with questions or videos that must not be in it.
        prompts_folder: Prompts to be used in place of this package's.
        num_parallel: Most requests under way at a time.
        timeout_seconds: Longest wait for one answer.
        seed: Decides the order of options when letters are balanced again.
        console: Where progress is shown; standard error when not given.

    Returns:
        The report, as it is written, and what was asked.

    Raises:
        UsageError: When the request makes no sense.
        DataError: When the dataset is damaged, the server is of no use, or something can't be written.
    """
    records = read_everything(dataset)
    known = [read_benchmark(path) for path in benchmarks]
    prompts = load_prompts(prompts_folder, ANSWERING_PROMPTS)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
    with ResponseCache(dataset / RESPONSES_NAME) as cache, progress:
        bar = progress.add_task("questions", total=len(records))

        async def run() -> tuple[Filtered, Ledger]:
            async with LanguageModel(
                base_url, cache, num_parallel=num_parallel, timeout_seconds=timeout_seconds
            ) as client:
                asking = QuestionFilter(
                    client=client,
                    models=models,
                    prompts=prompts,
                    settings=settings,
                    captions=read_captions(dataset),
                    on_question=lambda: progress.advance(bar),
                    num_videos_at_once=num_parallel,
                )
                return await asking.run(dataset, records, known), client.ledger

        filtered, ledger = asyncio.run(run())
    return write_filtered(dataset, filtered, models=models, settings=settings, seed=seed), ledger


def read_everything(dataset: Path) -> list[QuestionRecord]:
    """Read the questions of a dataset together with those that an earlier filtering took out of it.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records can't be read.
    """
    records = {record.question_id: record for record in read_dataset(dataset)}
    # A build that was run again has written another manifest, and what was filtered before concerns it no more.
    if "filter" in _read_manifest(dataset) and (dataset / UNFILTERED_NAME).exists():
        records |= {record.question_id: record for record in read_records(dataset / UNFILTERED_NAME)}
    return [records[question_id] for question_id in sorted(records)]


def read_captions(dataset: Path) -> dict[str, list[str]]:
    """Read what a build wrote about the segments of its videos, as one line each by the digest of the video.

    Raises:
        DataError: When the file is damaged.
    """
    path = dataset / SEGMENTS_NAME
    lines: dict[str, list[tuple[float, str]]] = {}
    if not path.exists():
        return {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            segment = _DescribedSegment.model_validate_json(line)
            said = f' Said: "{segment.speech}"' if segment.speech else ""
            text = f"[{segment.start_seconds:.1f} s to {segment.end_seconds:.1f} s] {segment.caption}{said}"
            lines.setdefault(segment.video_digest, []).append((segment.start_seconds, text))
    except ValidationError as error:
        raise DataError(f"{path}: {describe_invalid(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error})") from error
    return {digest: [text for _, text in sorted(found)] for digest, found in lines.items()}


def write_filtered(
    dataset: Path, filtered: Filtered, *, models: FilterModels, settings: FilterSettings, seed: int
) -> dict[str, Any]:
    """Put the right answers of what is kept on all letters alike, and write everything down.

    Returns:
        The report, as it is written.

    Raises:
        DataError: When something can't be written.
    """
    everything = [*filtered.kept, *(item.record for item in filtered.dropped)]
    kept, unclear = balance_options(filtered.kept, seed=seed)
    verdict = Verdict(reason=Reason.LETTERS_UNCLEAR, detail="the reasoning names a letter that can't be rewritten")
    lost = [DroppedQuestion(record=record, verdict=verdict) for record in unclear]
    dropped = sorted((*filtered.dropped, *lost), key=lambda item: item.record.question_id)
    report: dict[str, Any] = {
        "input": len(everything),
        "kept": len(kept),
        "dropped": dict(sorted(Counter(str(item.verdict.reason) for item in dropped).items())),
        "models": {"answerer": models.answerer, "judge": models.judge, "policy": models.policy},
        "settings": settings.model_dump(mode="json"),
        "pass_rates": describe_pass_rates(kept),
        "pass_rates_unfiltered": describe_pass_rates(everything),
        "decontamination": filtered.decontamination.as_json(),
        "items": [
            {
                "question_id": item.record.question_id,
                "reason": str(item.verdict.reason),
                "detail": " ".join(item.verdict.detail.split())[:300],
            }
            for item in dropped
        ],
    }
    manifest = _with_filter(_read_manifest(dataset), kept, report)
    # In this order a kill loses no question: the first file has them all, and counts as soon as the second is there.
    write_records(dataset / UNFILTERED_NAME, sorted(everything, key=lambda record: record.question_id))
    write_text_atomic(dataset / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    write_text_atomic(dataset / REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_records(dataset / RECORDS_NAME, kept)
    return report


def _with_filter(
    manifest: Mapping[str, Any], kept: Sequence[QuestionRecord], report: Mapping[str, Any]
) -> dict[str, Any]:
    """Bring a manifest to what is left, whether it is that of a build or of an earlier filtering."""
    counts = Counter[str](manifest.get("dropped", {}))
    counts.subtract(manifest.get("filter", {}).get("dropped", {}))
    counts.update(report["dropped"])
    return {
        **manifest,
        "input": {"questions": report["input"], **manifest.get("input", {})},
        "kept": {**manifest.get("kept", {}), "questions": len(kept)},
        "dropped": {reason: count for reason, count in sorted(counts.items()) if count > 0},
        "dataset_hash": hash_records(kept),
        "filter": {name: report[name] for name in ("input", "kept", "dropped", "models", "settings", "pass_rates")},
    }


def _read_manifest(dataset: Path) -> dict[str, Any]:
    """Read the manifest; a dataset without one, or with an unreadable one, starts a new one."""
    try:
        content: object = json.loads((dataset / MANIFEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{dataset / MANIFEST_NAME}: not readable as JSON ({error}); restore or remove it") from error
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}
