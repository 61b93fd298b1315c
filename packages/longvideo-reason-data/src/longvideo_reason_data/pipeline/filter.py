"""Filtering a dataset in its folder: reads all its questions, writes the suitable ones with their pass rates.

Dropped questions aren't lost: `unfiltered.parquet` has every input question with its pass rates, and the next run
starts from it. So filtering twice equals filtering once, and filtering with other thresholds repeats no request.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.filtering.benchmark_files import Benchmark, read_benchmark
from longvideo_reason_data.filtering.by_answers import FilterModels, QuestionFilter
from longvideo_reason_data.filtering.by_words import Filtered, RejectedQuestion
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.captions import read_captions
from longvideo_reason_data.generation.plan import digest_json
from longvideo_reason_data.generation.settings import Engine
from longvideo_reason_data.inspection.statistics import describe_pass_rates
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.requests import Asks
from longvideo_reason_data.language_model.session import ClientSession, Spent, open_session
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.media.decoders.base import decoder_version
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.ownership import own_folder
from longvideo_reason_data.pipeline.option_order import balance_options
from longvideo_reason_data.pipeline.progress import BuildProgress
from longvideo_reason_data.prompts.templates import ANSWERING_PROMPTS, load_prompts
from longvideo_reason_data.records.drop_reasons import Reason, Verdict
from longvideo_reason_data.records.folder import (
    MANIFEST_NAME,
    RECORDS_NAME,
    hash_records,
    read_dataset,
    read_decoder,
    read_manifest,
    require_folder,
)
from longvideo_reason_data.records.notes import FILTERS_NAME
from longvideo_reason_data.records.record import QuestionRecord, read_records, write_records

UNFILTERED_NAME = "unfiltered.parquet"


def filter_folder(
    dataset: Path,
    *,
    base_url: str,
    models: FilterModels,
    settings: FilterSettings,
    client: ClientSettings | None = None,
    prices: Mapping[str, TokenPrice] | None = None,
    benchmarks: Sequence[Path] = (),
    prompts_folder: Path | None = None,
    seed: int = 0,
    engine: Engine = "local",
    console: Console | None = None,
) -> dict[str, Any]:
    """Filter a dataset in place.

    Args:
        dataset: Its folder.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including `/v1`.
        models: The models to use.
        settings: How questions are answered, and what is kept.
        client: Settings of the client, and the maximum total cost of the dataset.
        prices: Prices of the models, where they differ from those in `client`.
        benchmarks: Files with questions or videos that must not be in it.
        prompts_folder: Prompts to be used in place of this package's.
        seed: Determines the order of options when letters are rebalanced.
        engine: Where videos are read and answers counted: in this process, or by Ray Data on a cluster.
        console: Where progress is shown; standard error when not given.

    Returns:
        The manifest, as it is written.

    Raises:
        UsageError: When the settings are invalid, or another process is using the folder.
        DataError: When the dataset is damaged, the server can't be used, or something can't be written.
    """
    client = client or ClientSettings()
    if prices is None:
        prices = client.prices(models.answerer, models.judge, models.policy)
    require_folder(dataset)
    decoder = read_decoder(dataset)
    tools = {"decoder": decoder_version(decoder)}
    known = [read_benchmark(path) for path in benchmarks]
    prompts = load_prompts(prompts_folder, ANSWERING_PROMPTS)
    with own_folder(dataset), BuildProgress(console) as progress:
        records = read_everything(dataset)
        captions = read_captions(dataset)
        advance = progress.start_filtering(len(records))

        def make_filter(asked: Asks) -> QuestionFilter:
            return QuestionFilter(
                client=asked,
                models=models,
                prompts=prompts,
                settings=settings,
                captions=captions,
                decoder=decoder,
                on_question=advance,
                num_videos_at_once=client.num_parallel,
            )

        if engine == "ray":
            from longvideo_reason_data.pipeline.ray_stages import filter_on_cluster

            filtered, spent = filter_on_cluster(
                make_filter,
                dataset,
                records,
                known,
                base_url=base_url,
                settings=client,
                prices=prices,
                on_spent=progress.show_spent,
            )
        else:
            with open_session(base_url, dataset, client, prices) as session:
                filtered = asyncio.run(_filter_here(make_filter, dataset, records, known, session, progress))
                spent = session.spent()
        shaped_by = {
            "models": asdict(models),
            "settings": settings.model_dump(mode="json"),
            "prompts": prompts.digest_of(),
            "benchmarks": [digest_file(path) for path in benchmarks],
            "seed": seed,
            "decoder": decoder,
        }
        digests = {"input_digest": hash_records(_unmeasured(records)), "config_digest": digest_json(shaped_by)}
        return write_filtered(
            dataset,
            filtered,
            models=models,
            settings=settings,
            seed=seed,
            spent=spent,
            stage_digests=digests,
            tools=tools,
        )


async def _filter_here(
    make_filter: Callable[[Asks], QuestionFilter],
    dataset: Path,
    records: Sequence[QuestionRecord],
    benchmarks: Sequence[Benchmark],
    session: ClientSession,
    progress: BuildProgress,
) -> Filtered:
    async with session.model:
        asking = make_filter(session.model)
        advance = asking.on_question

        def on_question() -> None:
            advance()
            progress.show_spent(session.spent())

        return await replace(asking, on_question=on_question).run(dataset, records, benchmarks)


def _unmeasured(records: Sequence[QuestionRecord]) -> list[QuestionRecord]:
    """The input questions, without the measurements of an earlier filtering."""
    return [record.model_copy(update={"pass_rates": ()}) for record in records]


def read_everything(dataset: Path) -> list[QuestionRecord]:
    """Read the questions of a dataset including those that an earlier filtering removed.

    Raises:
        UsageError: When the folder is missing or has no dataset of this version.
        DataError: When the records can't be read.
    """
    records = {record.question_id: record for record in read_dataset(dataset)}
    # A repeated build has written another manifest, for which the earlier filtering is no longer valid.
    if "filter" in read_manifest(dataset) and ForeignFolder(dataset, error=DataError).has(UNFILTERED_NAME):
        records |= {record.question_id: record for record in read_records(dataset / UNFILTERED_NAME)}
    return [records[question_id] for question_id in sorted(records)]


def write_filtered(
    dataset: Path,
    filtered: Filtered,
    *,
    models: FilterModels,
    settings: FilterSettings,
    seed: int,
    spent: Spent,
    stage_digests: Mapping[str, str],
    tools: Mapping[str, str],
) -> dict[str, Any]:
    """Distribute the right answers of kept questions evenly over the letters, and write everything.

    Returns:
        The manifest, as it is written.

    Raises:
        DataError: When something can't be written.
    """
    everything = [*filtered.kept, *(item.record for item in filtered.dropped)]
    kept, unclear = balance_options(filtered.kept, seed=seed)
    verdict = Verdict(reason=Reason.LETTERS_UNCLEAR, detail="the reasoning names a letter that can't be rewritten")
    lost = [RejectedQuestion(record=record, verdict=verdict) for record in unclear]
    dropped = sorted((*filtered.dropped, *lost), key=lambda item: item.record.question_id)
    report: dict[str, Any] = {
        "input": len(everything),
        "kept": len(kept),
        "dropped": dict(sorted(Counter(str(item.verdict.reason) for item in dropped).items())),
        "models": asdict(models),
        "settings": settings.model_dump(mode="json"),
        "tools": dict(tools),
        "pass_rates": describe_pass_rates(kept),
        "pass_rates_unfiltered": describe_pass_rates(everything),
        "decontamination": filtered.decontamination.as_json(),
        "items": [
            {
                "question_id": item.record.question_id,
                "reason": str(item.verdict.reason),
                "detail": visible(" ".join(item.verdict.detail.split())),
            }
            for item in dropped
        ],
    }
    manifest = _with_filter(read_manifest(dataset), kept, {**report, **stage_digests}, spent)
    # In this order a kill loses no question: the first file has all of them, and is valid once the second exists.
    write_records(dataset / UNFILTERED_NAME, sorted(everything, key=lambda record: record.question_id))
    write_text_atomic(dataset / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    write_text_atomic(dataset / FILTERS_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_records(dataset / RECORDS_NAME, kept)
    return manifest


def _with_filter(
    manifest: Mapping[str, Any], kept: Sequence[QuestionRecord], report: Mapping[str, Any], spent: Spent
) -> dict[str, Any]:
    """Update a manifest to what is left, whether it is from a build or an earlier filtering."""
    before = manifest.get("filter", {})
    calls = {"made": spent.num_made, "cached": spent.num_cached, "failed": dict(spent.num_failed)}
    return {
        **manifest,
        "input": {"questions": report["input"], **manifest.get("input", {})},
        "kept": {**manifest.get("kept", {}), "questions": len(kept)},
        "dropped": _replaced(manifest.get("dropped", {}), before.get("dropped", {}), report["dropped"]),
        "calls": _replace_calls(manifest.get("calls", {}), before.get("calls", {}), calls),
        "adaptations": {model: dict(counts) for model, counts in spent.adaptations.items()},
        "sampling": {model: dict(counts) for model, counts in spent.sampling.items()},
        "tokens": {"prompt": spent.prompt_tokens, "completion": spent.completion_tokens},
        "cost": spent.cost,
        "cost_unconfirmed": spent.unconfirmed_cost,
        "dataset_hash": hash_records(kept),
        "filter": {
            **{name: report[name] for name in ("input_digest", "config_digest", "input", "kept", "dropped")},
            **{name: report[name] for name in ("models", "settings", "tools", "pass_rates")},
            "calls": calls,
        },
    }


def _replaced(total: Mapping[str, int], before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Replace the counts of an earlier filtering in a sum with new ones."""
    counts = Counter(total)
    counts.subtract(before)
    counts.update(now)
    return {name: count for name, count in sorted(counts.items()) if count > 0}


def _replace_calls(total: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: total.get(name, 0) - before.get(name, 0) + now[name] for name in ("made", "cached")},
        "failed": _replaced(total.get("failed", {}), before.get("failed", {}), now["failed"]),
    }
