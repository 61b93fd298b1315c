"""The command `build`: its options. The implementation is loaded when it is called."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from longvideo_reason_data.commands.filter import print_adaptations, print_notes, report_filtered
from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.settings import BuildSettings, Engine
from longvideo_reason_data.records.folder import MANIFEST_NAME

if TYPE_CHECKING:
    from longvideo_reason_data.generation.plan import BuildPlan
    from longvideo_reason_data.generation.sources import SourceVideo


def build(
    videos: tuple[Path, ...],
    output: Path,
    base_url: str,
    model: str,
    captioner: str | None = None,
    prompts: Path | None = None,
    engine: Engine = "local",
    filter: Literal["answers", "none"] = "answers",  # noqa: A002 - the name of the option
    judge: str | None = None,
    policy: str | None = None,
    benchmarks: tuple[Path, ...] = (),
    filters: FilterSettings = FilterSettings(),  # noqa: B008 - tyro shows it as the default
    settings: Annotated[BuildSettings, tyro.conf.arg(name="")] = BuildSettings(),  # noqa: B008 - tyro shows it as the default
    estimate: bool = False,
    replace: bool = False,
    follow_links: bool = False,
) -> None:
    """Turn video files into a dataset with the help of a language model.

    Videos are cut into segments, each segment is described using its subtitles, and from the descriptions questions
    with or without options, evidence and reasoning are generated, checked and balanced. Then the captioner answers each
    question under several conditions, and those that don't need the video or can't be answered with it are dropped,
    like by longvideo-data filter. Subtitles are read from FILM.srt, FILM.en.vtt, FILM.ass or similar files next to a
    video or in the folder of --subtitles, or from a text track inside it; unreadable ones are reported, and the video
    is used without them. The videos are hard-linked into OUTPUT/videos, or copied when OUTPUT is on another disk.

    Every answer of the model is saved in OUTPUT/responses.jsonl before it is used. After an interruption, start the
    same command again: answered requests are not repeated. Before the first request an estimate of calls, tokens, cost
    and time is printed. The API key is read from OPENAI_API_KEY.

    Example: longvideo-data build --videos films --output dataset --base-url http://localhost:8000/v1 --model my-model

    Example: longvideo-data build --videos films --output dataset --base-url http://localhost:8000/v1 --model my-model
    --prompt-price 0.4 --completion-price 1.6 --estimate

    Example: longvideo-data build --videos a.mp4 b.mkv --output dataset --base-url http://localhost:8000/v1
    --model reasoner --captioner seer --judge reasoner --segments scenes --questions.quotas.temporal 3 --max-cost 20
    --prompt-price 0.4 --completion-price 1.6

    Args:
        videos: Video files, or folders that are searched for them.
        output: Folder of the dataset; created if it doesn't exist.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including /v1.
        model: Name of the model that writes the questions.
        captioner: Name of the model that sees the frames; by default the same.
        prompts: Folder with prompts (caption.md, question.md, rewrite.md, answer.md, …) to use instead of the built-in
            ones.
        engine: "ray" distributes the work over a Ray cluster, that of RAY_ADDRESS or one started here; videos and the
            output must have the same paths on all its machines.
        filter: "answers" has each question answered by the captioner and keeps those that need their video; "none"
            keeps all, for instance to run longvideo-data filter with another model.
        judge: Name of a model other than the captioner, for instance the reasoner; it compares open answers and answers
            from the reasoning alone.
        policy: Name of the model to be trained; its rollouts measure the difficulty of questions.
        benchmarks: Evaluation sets whose questions and videos must not be in the dataset: JSON, JSON lines, CSV, TSV or
            Parquet.
        filters: How questions are answered, and what is kept.
        settings: Other settings.
        estimate: Only print the estimate; nothing is sent or written.
        replace: Build anew where a dataset was built with other settings; answers of models stay.
        follow_links: Follow links in the output, and those that are subtitles, which may lead anywhere; without it they
            are refused.
    """
    from longrl_files import folders
    from longvideo_reason_data.filtering.by_answers import FilterModels
    from longvideo_reason_data.filtering.evaluation_sets import read_evaluation_set
    from longvideo_reason_data.pipeline.build import build as build_dataset
    from longvideo_reason_data.pipeline.build import make_plan, probe_videos
    from longvideo_reason_data.pipeline.filter import filter_folder
    from longvideo_reason_data.pipeline.losses import refuse_empty
    from longvideo_reason_data.pipeline.workload import estimate_build
    from longvideo_reason_data.prompts.templates import ANSWERING_PROMPTS, load_prompts
    from longvideo_reason_data.records.folder import DROPPED_NAME
    from longvideo_reason_data.records.notes import DroppedNote, read_notes

    if follow_links:
        for folder in (output, *videos, *(video.parent for video in videos)):
            folders.follow_links(folder)
    # What the filters don't support is refused before anything is paid.
    models = FilterModels(answerer=captioner or model, judge=judge, policy=policy)
    answering = load_prompts(prompts, ANSWERING_PROMPTS)
    for path in benchmarks:
        read_evaluation_set(path)
    if filter == "answers" and judge is None and settings.questions.open_ended_share > 0:
        share = settings.questions.open_ended_share
        raise UsageError(
            f"--questions.open-ended-share {share:g}: answers to open questions need a judge; "
            "give --judge, another model than the captioner, or --filter none"
        )
    prices = settings.model_prices(models.answerer, model, judge, policy)

    def look_ahead(sources: "Sequence[SourceVideo]", plan: "BuildPlan") -> None:
        asked = filters if filter == "answers" else None
        found = estimate_build(sources, plan, models=models, filters=asked, answering=answering, prices=prices)
        print("\n".join(found.lines()), flush=True)

    if estimate:
        plan = make_plan(settings, prompts, model=model, captioner=captioner)
        look_ahead(probe_videos(videos, output, plan), plan)
        return
    manifest = build_dataset(
        videos,
        output,
        base_url=base_url,
        model=model,
        captioner=captioner,
        prompts_folder=prompts,
        settings=settings,
        engine=engine,
        replace=replace,
        look_ahead=look_ahead,
    )
    _print_built(output, manifest)
    num_questions, num_kept = manifest["input"]["questions"], manifest["kept"]["questions"]
    dropped = (note for _, note in read_notes(output, DROPPED_NAME, DroppedNote))
    refuse_empty(output, num_questions, num_kept, dropped)
    if filter == "none":
        print_notes(output)
        return
    manifest = filter_folder(
        output,
        base_url=base_url,
        models=models,
        settings=filters,
        client=settings,
        prices=prices,
        evaluation_sets=benchmarks,
        prompts_folder=prompts,
        seed=settings.seed,
        engine=engine,
    )
    report_filtered(output, manifest)


def _print_built(output: Path, manifest: Mapping[str, Any]) -> None:
    """Print in a few lines what was kept and what was requested."""
    console = Console()
    for stage, count in manifest["input"].items():
        dropped = manifest["stages"][stage]["dropped"]
        reasons = f" ({', '.join(f'{reason} {number}' for reason, number in dropped.items())})" if dropped else ""
        console.print(f"{stage}: {manifest['kept'][stage]} of {count} kept{reasons}", highlight=False, soft_wrap=True)
    print_adaptations(manifest)
    calls = manifest["calls"]
    print(f"calls: {calls['made']} made, {calls['cached']} from the journal; see {output / MANIFEST_NAME}", flush=True)
