"""The command `filter`: its options. The implementation is loaded when it is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.settings import Engine
from longvideo_reason_data.language_model.settings import ClientSettings


def filter_dataset(
    dataset: Annotated[Path, tyro.conf.Positional],
    base_url: str,
    model: str,
    judge: str | None = None,
    policy: str | None = None,
    benchmarks: tuple[Path, ...] = (),
    prompts: Path | None = None,
    seed: int = 0,
    engine: Engine = "local",
    client: Annotated[ClientSettings, tyro.conf.arg(name="")] = ClientSettings(),  # noqa: B008 - tyro shows it as the default
    settings: Annotated[FilterSettings, tyro.conf.arg(name="")] = FilterSettings(),  # noqa: B008 - tyro shows it as the default
    follow_links: bool = False,
) -> None:
    """Drop questions that don't need their video, that can't be answered with it, or that repeat others.

    A model answers each question: without the video, from one frame, from the full video, from its evidence, and more;
    the record keeps how often each was right. DATASET/filters.json says what was dropped and why,
    DATASET/unfiltered.parquet keeps it. Every answer is saved in DATASET/responses.jsonl before it is used: after an
    interruption, or with other thresholds, no request is repeated.

    Example: longvideo-data filter dataset --base-url http://localhost:8000/v1 --model seer --judge reasoner

    Example: longvideo-data filter dataset --base-url http://localhost:8000/v1 --model seer --policy student
    --benchmarks videomme.parquet --thresholds.max-blind-rate 0.5

    Args:
        dataset: Folder of the dataset.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including /v1.
        model: Name of the model that answers; it must accept images.
        judge: Name of another model, which compares open answers and answers from the reasoning alone.
        policy: Name of the model to be trained; its rollouts measure the difficulty of questions.
        benchmarks: Evaluation sets whose questions and videos must not be in the dataset: JSON, JSON lines, CSV, TSV or
            Parquet.
        prompts: Folder with prompts (answer.md, same_answer.md, support.md) to use instead of the built-in ones.
        seed: Determines the order of options when letters are rebalanced.
        engine: "ray" distributes the work over a Ray cluster, that of RAY_ADDRESS or one started here; the dataset must
            have the same path on all its machines.
        client: Settings of the client, and the maximum cost of this dataset.
        settings: Other settings.
        follow_links: Follow links in the dataset, which may lead anywhere; without it they are refused.
    """
    from longrl_files import folders
    from longvideo_reason_data.filtering.by_answers import FilterModels
    from longvideo_reason_data.pipeline.filter import filter_folder

    if follow_links:
        folders.follow_links(dataset)
    manifest = filter_folder(
        dataset,
        base_url=base_url,
        models=FilterModels(answerer=model, judge=judge, policy=policy),
        evaluation_sets=benchmarks,
        prompts_folder=prompts,
        seed=seed,
        engine=engine,
        client=client,
        settings=settings,
    )
    report_filtered(dataset, manifest)


def report_filtered(dataset: Path, manifest: Mapping[str, Any]) -> None:
    """Print in a few lines what filtering kept and what was requested.

    Raises:
        DataError: When it kept nothing.
    """
    from longvideo_reason_data.pipeline.losses import refuse_empty
    from longvideo_reason_data.records.notes import FILTERS_NAME, read_filtered

    report = manifest["filter"]
    calls = report["calls"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items())
    print(f"filtered: {report['kept']} of {report['input']} kept{f' ({reasons})' if reasons else ''}")
    print_adaptations(manifest)
    print(f"calls: {calls['made']} made, {calls['cached']} from the journal; see {dataset / FILTERS_NAME}")
    refuse_empty(dataset, report["input"], report["kept"], read_filtered(dataset))
    print_notes(dataset)


def print_notes(dataset: Path) -> None:
    """Print which splits of a dataset are empty, and whether too little is held out to measure with."""
    from longvideo_reason_data.inspection.statistics import describe_dataset

    for note in describe_dataset(dataset)["notes"]:
        print(f"note: {note}")


def print_adaptations(manifest: Mapping[str, Any]) -> None:
    """Print how requests were adapted to the server."""
    for model, counts in manifest["adaptations"].items():
        print(f"asked: {model} {', '.join(f'{change} ({count} answers)' for change, count in counts.items())}")
