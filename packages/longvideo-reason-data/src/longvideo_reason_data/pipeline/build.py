"""From video files to a dataset: probe, cut, describe, ask, rewrite, check, balance, write.

Every item that goes in comes out as kept or as dropped with a reason, at each of three stages: videos, segments and
questions. The first probes every file; the other two process one video at a time, here or on a cluster; finally the
results of the videos are combined. Paid answers are in the journal at once, and settled videos in their shards, so a
build that is killed and restarted requests only what was never answered and ends with the same records.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.generation.plan import BuildPlan, digest_json
from longvideo_reason_data.generation.settings import BuildSettings, Engine
from longvideo_reason_data.generation.shards import Dropped, ShardFolder, make_dropped
from longvideo_reason_data.generation.sources import SourceVideo, place_video, probe_source
from longvideo_reason_data.language_model.server import check_access
from longvideo_reason_data.language_model.session import Spent
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.decoders.base import decoder_version
from longvideo_reason_data.media.scenes import detector_version
from longvideo_reason_data.ownership import own_folder
from longvideo_reason_data.pipeline.assembly import assemble
from longvideo_reason_data.pipeline.local import generate_here
from longvideo_reason_data.pipeline.manifest import Accounts, find_other_setting, make_manifest
from longvideo_reason_data.pipeline.progress import BuildProgress
from longvideo_reason_data.prompts.templates import load_prompts
from longvideo_reason_data.records.folder import MANIFEST_NAME, RECORDS_NAME, SHARDS_NAME, read_manifest
from longvideo_reason_data.records.record import check_version

_NUM_PROBES = 4  # files probed in parallel

LookAhead = Callable[[Sequence[SourceVideo], BuildPlan], None]
"""What is told of a build when its videos are known, before anything is asked."""


def build(
    videos: Sequence[Path],
    output: Path,
    *,
    base_url: str,
    model: str,
    captioner: str | None = None,
    prompts_folder: Path | None = None,
    settings: BuildSettings | None = None,
    engine: Engine = "local",
    replace: bool = False,
    look_ahead: LookAhead = lambda sources, plan: None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Build a dataset from video files, or continue one.

    Args:
        videos: Files and folders.
        output: The dataset's folder. Videos are hard-linked into it, or copied from another disk.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including `/v1`.
        model: The reasoner.
        captioner: The model that sees the frames; by default the reasoner.
        prompts_folder: Prompts to use instead of this package's.
        settings: Everything else.
        engine: Where videos are read and questions are generated: in this process, or by Ray Data on a cluster.
        replace: Replace a dataset that was built with other settings; the answers of models stay in any case.
        look_ahead: Called before the first request.
        console: Where progress is shown; by default standard error.

    Returns:
        The manifest, as it is written.

    Raises:
        UsageError: When there is nothing to build from, the settings are invalid, the folder has a dataset that was
            built with others, or another process is using it.
        DataError: When no video can be read, the server can't be used, or the output can't be written.
    """
    settings = settings or BuildSettings()
    settings.model_prices(captioner or model, model)  # a limit on the cost without prices is refused at once
    check_access(base_url)
    plan = make_plan(settings, prompts_folder, model=model, captioner=captioner)
    settings = plan.settings
    tools = {"decoder": decoder_version(settings.decoder)}
    if settings.segments == "scenes":
        tools["scenes"] = detector_version()
    paths = _find_outside(videos, output)
    with own_folder(output):
        _refuse_foreign(output)
        if not replace:
            _refuse_other_settings(output, plan)
        return _build(paths, output, base_url, plan, engine, tools, look_ahead, console)


def make_plan(settings: BuildSettings, prompts_folder: Path | None, *, model: str, captioner: str | None) -> BuildPlan:
    """Make the plan of a build; see `build`.

    Raises:
        UsageError: When a folder that is named isn't there, or a prompt in it is wrong.
    """
    if settings.subtitles is not None:
        if not settings.subtitles.is_dir():
            raise UsageError(f"{settings.subtitles}: no such folder; expected subtitles, set --subtitles")
        settings = settings.model_copy(update={"subtitles": settings.subtitles.absolute()})
    return BuildPlan(settings=settings, prompts=load_prompts(prompts_folder), model=model, captioner=captioner or model)


def probe_videos(videos: Sequence[Path], output: Path, plan: BuildPlan) -> list[SourceVideo]:
    """Look at the videos of a build without writing anything.

    Raises:
        UsageError: When there are none.
        DataError: When none can be read.
    """
    found = list(_probe(_find_outside(videos, output), plan, "local"))
    sources = {source.digest: source for source in found if isinstance(source, SourceVideo)}
    if not sources:
        raise DataError(f"none of the {len(found)} videos can be read; the first: {found[0]}")
    return list(sources.values())


def _find_outside(videos: Sequence[Path], output: Path) -> list[Path]:
    paths = [path for path in find_videos(videos) if not path.resolve().is_relative_to(output.resolve())]
    if not paths:
        raise UsageError("no videos given outside of the output folder; expected files or folders")
    return paths


def _build(
    paths: Sequence[Path],
    output: Path,
    base_url: str,
    plan: BuildPlan,
    engine: Engine,
    tools: Mapping[str, str],
    look_ahead: LookAhead,
    console: Console | None,
) -> dict[str, Any]:
    """Build in a folder that this process owns."""
    settings = plan.settings
    with BuildProgress(console) as progress:
        sources, dropped = _collect_videos(paths, output, plan, engine, progress)
        look_ahead(sources, plan)
        shards = ShardFolder(output, plan.config_digests["questions"])
        spent, num_resumed = _generate(sources, plan, shards, output, base_url, engine, progress)
    accounts = Accounts()
    accounts.num_input["videos"] = len(paths)
    dataset_hash = assemble(output, sources, shards, settings, accounts, dropped)
    digests = sorted(source.digest for source in sources)
    manifest = make_manifest(
        plan,
        accounts,
        spent,
        input_digests={
            "videos": digest_json(digests),
            "segments": digest_json(sorted([source.digest, source.speech_digest] for source in sources)),
            "questions": digest_json(sorted([source.digest, *source.borders] for source in sources)),
        },
        tools=tools,
        subtitles=_describe_subtitles(sources),
        num_resumed=num_resumed,
        dataset_hash=dataset_hash,
    )
    write_text_atomic(output / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _describe_subtitles(sources: Sequence[SourceVideo]) -> dict[str, Any]:
    """Count the videos with subtitles, and list unreadable ones; no video is dropped because of them."""
    return {
        "found": sum(bool(source.speech_origin) for source in sources),
        "unreadable": sorted(source.speech_problem for source in sources if source.speech_problem),
    }


def _refuse_foreign(output: Path) -> None:
    """Refuse to overwrite a dataset that isn't from a build of this version."""
    records = output / RECORDS_NAME
    if not records.exists():
        return
    check_version(records)
    if not (output / SHARDS_NAME).is_dir():
        raise UsageError(
            f"{output}: contains a dataset that wasn't made by a build; choose another folder for --output"
        )


def _refuse_other_settings(output: Path, plan: BuildPlan) -> None:
    """Refuse to replace a dataset by one that other settings make of the same videos."""
    difference = find_other_setting(read_manifest(output), plan) if (output / RECORDS_NAME).exists() else None
    if difference is not None:
        raise UsageError(
            f"{output}: the dataset there was built with other settings: {difference}; give --replace to build it anew "
            "(paid answers stay), or choose another --output"
        )


def _collect_videos(
    paths: Sequence[Path], output: Path, plan: BuildPlan, engine: Engine, progress: BuildProgress
) -> tuple[list[SourceVideo], list[Dropped]]:
    """Probe every file, and add each video to the output folder once."""
    progress.start_videos(len(paths))
    sources: dict[str, SourceVideo] = {}
    dropped: list[Dropped] = []
    first_error: str | None = None
    for path, found in zip(paths, _probe(paths, plan, engine), strict=True):
        if isinstance(found, DataError):
            first_error = first_error or str(found)
            dropped.append(make_dropped("videos", str(path), "video_unreadable", str(found)))
        elif found.digest in sources:
            detail = f"the same file as {sources[found.digest].path}"
            dropped.append(make_dropped("videos", str(path), "video_duplicate", detail))
        else:
            place_video(found, output)
            if found.speech_problem:
                progress.warn(found.speech_problem)
            sources[found.digest] = found
        progress.advance_video()
    if not sources:
        raise DataError(f"none of the {len(paths)} videos can be read; the first: {first_error}")
    return list(sources.values()), dropped


def _probe(paths: Sequence[Path], plan: BuildPlan, engine: Engine) -> Iterator[SourceVideo | DataError]:
    """Probe files, several at a time, and yield the results in their order."""
    if engine == "ray":
        from longvideo_reason_data.pipeline.ray_stages import probe_on_cluster

        yield from probe_on_cluster(paths, plan.settings)
        return
    with ThreadPoolExecutor(_NUM_PROBES) as threads:
        yield from threads.map(partial(_probe_one, settings=plan.settings), paths)


def _probe_one(path: Path, settings: BuildSettings) -> SourceVideo | DataError:
    try:
        return probe_source(path, settings)
    except UsageError:
        raise
    except DataError as error:
        return error


def _generate(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    shards: ShardFolder,
    output: Path,
    base_url: str,
    engine: Engine,
    progress: BuildProgress,
) -> tuple[Spent, int]:
    """Create the missing shards.

    Returns:
        What was requested, and how many answers weren't needed because their video was settled.
    """
    num_questions = plan.settings.questions.quotas.total
    advance = progress.start_generation(
        num_segments=sum(source.num_segments for source in sources), num_questions=num_questions * len(sources)
    )
    pending: list[SourceVideo] = []
    num_resumed = 0
    for source in sources:
        if shard := shards.find(source):
            num_resumed += shard.num_requests
            progress.advance_shard(num_segments=source.num_segments, num_questions=num_questions)
        else:
            pending.append(source)

    if engine == "ray":
        from longvideo_reason_data.pipeline.ray_stages import generate_on_cluster

        spent = generate_on_cluster(
            pending, plan, shards, base_url=base_url, output=output, progress=progress, on_spent=progress.show_spent
        )
    else:
        spent = generate_here(
            pending, plan, shards, base_url=base_url, output=output, advance=advance, on_spent=progress.show_spent
        )
    return spent, num_resumed
