"""Runs the stages of a build on a Ray cluster: reading files, decoding frames, checking and filtering questions.

The work runs wherever the cluster has a free processor, one task per video; only one actor sends requests to the server
(`longvideo_reason_data.pipeline.ray_cluster`). The paths of the videos, and for the filters that of the dataset, must
mean the same on every machine; nothing else is shared.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.benchmark_files import Benchmark
from longvideo_reason_data.filtering.by_answers import QuestionFilter
from longvideo_reason_data.filtering.by_words import Filtered, MeasuredQuestion, sort_questions
from longvideo_reason_data.filtering.decontamination import fingerprint_medium
from longvideo_reason_data.generation.one_video import generate
from longvideo_reason_data.generation.plan import BuildPlan
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.generation.shards import ShardFolder, VideoShard
from longvideo_reason_data.generation.sources import SourceVideo, probe_source
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.requests import Asks
from longvideo_reason_data.language_model.session import Spent
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.media.fingerprints import Fingerprint
from longvideo_reason_data.pipeline.progress import BuildProgress
from longvideo_reason_data.pipeline.ray_cluster import ClusterClient, map_texts, open_client
from longvideo_reason_data.records.drop_reasons import Reason, Verdict
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, list_media


def probe_on_cluster(paths: Sequence[Path], settings: BuildSettings) -> Iterator[SourceVideo | DataError]:
    """Probe files wherever there is a free processor.

    Yields:
        For each file in order the result, or why it can't be read.

    Raises:
        UsageError: When Ray isn't installed, or the decoder or the detector of scenes on one of the machines.
    """
    found: dict[str, SourceVideo | DataError] = {}
    names = [str(path.absolute()) for path in paths]
    for text in map_texts(names, partial(_probe, settings)):
        name, source, error = json.loads(text)
        found[name] = SourceVideo.model_validate(source) if source else DataError(error)
    yield from (found[name] for name in names)


def _probe(settings: BuildSettings, name: str) -> str:
    try:
        return json.dumps([name, probe_source(Path(name), settings).model_dump(mode="json"), ""])
    except UsageError:
        raise
    except DataError as error:
        return json.dumps([name, None, str(error)])


def generate_on_cluster(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    shards: ShardFolder,
    *,
    base_url: str,
    output: Path,
    progress: BuildProgress,
    on_spent: Callable[[Spent], None],
) -> Spent:
    """Create the shards of some videos; each is written here as soon as it is returned.

    Args:
        sources: The videos.
        plan: What the build was told.
        shards: Where the shards go.
        base_url: Address of the server, as this machine knows it.
        output: The dataset's folder on this machine, with the journal and the ledger.
        progress: The bars to update.
        on_spent: Told what was asked so far, after each video.

    Raises:
        UsageError: When Ray isn't installed, or the address is none.
        DataError: When the server can't be used, or something can't be read or written.
    """
    prices = plan.settings.model_prices(plan.captioner, plan.model)
    with open_client(base_url, output, plan.settings, prices) as client:
        texts = [source.model_dump_json() for source in sources]
        for text in map_texts(texts, partial(_generate, plan, client)):
            shard = VideoShard.model_validate_json(text)
            shards.write(shard)
            progress.advance_shard(num_segments=shard.source.num_segments, num_questions=shard.num_questions)
            on_spent(client.spent())
        return client.spent()


def _generate(plan: BuildPlan, client: ClusterClient, text: str) -> str:
    return asyncio.run(generate(SourceVideo.model_validate_json(text), plan, client)).model_dump_json()


def filter_on_cluster(
    make_filter: Callable[[Asks], QuestionFilter],
    dataset: Path,
    records: Sequence[QuestionRecord],
    benchmarks: Sequence[Benchmark],
    *,
    base_url: str,
    settings: ClientSettings,
    prices: Mapping[str, TokenPrice],
    on_spent: Callable[[Spent], None],
) -> tuple[Filtered, Spent]:
    """Filter the questions of a dataset, like `QuestionFilter.run` in one process.

    Args:
        make_filter: Creates the filter for a client.
        dataset: The dataset's folder, at the same path on all machines.
        records: The questions.
        benchmarks: What must not be among them.
        base_url: Address of the server, as this machine knows it.
        settings: How the server is asked.
        prices: Of the models that will be asked.
        on_spent: Told what was asked so far, after each video.

    Raises:
        UsageError: When Ray isn't installed, or the address is none.
        DataError: When the server can't be used, the judge can't be relied on, or something can't be read.
    """
    with open_client(base_url, dataset, settings, prices) as client:
        whole = make_filter(client)
        asyncio.run(whole.check_judge())
        known = sort_questions(records, _fingerprint_all(dataset, records, whole.decoder), benchmarks)
        for _ in known.dropped:
            whole.on_question()
        bare = replace(whole, captions={}, on_question=_do_nothing)  # what is sent contains only its own captions
        texts = [
            json.dumps(
                [
                    [record.model_dump(mode="json") for record in group],
                    {digest: list(whole.captions.get(digest, ())) for digest in group[0].digests},
                ]
            )
            for group in known.remaining
        ]
        measured: list[list[MeasuredQuestion]] = []
        for text in map_texts(texts, partial(_measure, bare, dataset.absolute())):
            measured.append([_read_measured(item) for item in json.loads(text)])
            for _ in measured[-1]:
                whole.on_question()
            on_spent(client.spent())
        return known.join(chain.from_iterable(measured)), client.spent()


def _measure(bare: QuestionFilter, dataset: Path, text: str) -> str:
    fields, captions = json.loads(text)
    records = [QuestionRecord.model_validate(record) for record in fields]
    work = replace(bare, captions=captions)
    measured = asyncio.run(work.measure_video(dataset, records))
    return json.dumps([[record.model_dump(mode="json"), verdict and asdict(verdict)] for record, verdict in measured])


def _read_measured(item: list[dict[str, str] | None]) -> MeasuredQuestion:
    fields, verdict = item
    record = QuestionRecord.model_validate(fields)
    return record, Verdict(reason=Reason(verdict["reason"]), detail=verdict["detail"]) if verdict else None


def _fingerprint_all(dataset: Path, records: Sequence[QuestionRecord], decoder: DecoderName) -> dict[str, Fingerprint]:
    media = {digest: medium.model_dump_json() for digest, medium in list_media(records).items()}
    found: dict[str, Fingerprint] = {}
    for text in map_texts(list(media.values()), partial(_fingerprint, dataset.absolute(), decoder)):
        digest, change, still = json.loads(text)
        if change:
            found[digest] = Fingerprint(change=_unpacked(change), still=_unpacked(still))
    return {digest: found[digest] for digest in media if digest in found}


def _fingerprint(dataset: Path, decoder: DecoderName, text: str) -> str:
    medium = RecordMedium.model_validate_json(text)
    found = fingerprint_medium(dataset, decoder, medium)
    vectors = (found.change, found.still) if found else ()
    packed = [base64.b64encode(vector.tobytes()).decode() for vector in vectors] or ["", ""]
    return json.dumps([medium.digest, *packed])


def _unpacked(text: str) -> np.ndarray[tuple[int], np.dtype[np.float16]]:
    return np.frombuffer(base64.b64decode(text), dtype=np.float16)


def _do_nothing() -> None:
    pass
