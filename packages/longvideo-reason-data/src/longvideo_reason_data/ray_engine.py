"""Running the stages of a build on a Ray cluster: Ray Data hands out the videos, one actor asks the server.

Reading files, decoding frames and checking questions go wherever the cluster has a free processor, one task per video.
The client of the server and its journal live in a single actor beside this process, so that limits, costs and "nothing
is paid twice" hold for the cluster as they do for one machine, and a build may go on with the other engine. The paths
of the videos must mean the same on every machine; nothing else is shared. `ray.init` finds the cluster: that of
`RAY_ADDRESS`, else one that it starts here.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longvideo_reason_data.build_plan import BuildPlan
from longvideo_reason_data.build_progress import BuildProgress
from longvideo_reason_data.build_settings import BuildSettings
from longvideo_reason_data.client_session import Spent, open_session
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.generation import generate
from longvideo_reason_data.model_failures import brief
from longvideo_reason_data.model_requests import Outcome, Picture, Reply, Request
from longvideo_reason_data.model_server import API_KEY_VARIABLE
from longvideo_reason_data.shards import ShardFolder, VideoShard
from longvideo_reason_data.sources import SourceVideo, probe_source


class _ClientActor:
    """The one client of the server: runs in a process of its own, holds the journal and is asked by all tasks."""

    def open(self, base_url: str, output: Path, plan: BuildPlan, api_key: str | None) -> DataError | None:
        """Take hold of journal and ledger and make the client. An error is returned, for Ray would wrap it."""
        self._files = ExitStack()
        if api_key is not None:  # handed over as an argument, because settings of the environment are logged
            os.environ[API_KEY_VARIABLE] = api_key
        try:
            prices = plan.settings.model_prices(plan.captioner, plan.model)
            self._session = self._files.enter_context(open_session(base_url, output, plan.settings, prices))
        except DataError as error:
            return error
        return None

    def is_known(self, key: str) -> bool:
        """Say whether a request was answered before, so that its pictures needn't be made."""
        return key in self._session.cache

    async def ask(self, request: Request) -> Reply | DataError:
        """Answer a request. An error that concerns every request is returned too."""
        try:
            return await self._session.model.ask(request)
        except DataError as error:
            return error

    def spent(self) -> Spent:
        """What was asked so far."""
        return self._session.spent()

    async def close(self) -> None:
        """Let go of the server and of the files."""
        await self._session.model.__aexit__(None, None, None)
        self._files.close()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A picture that was made already; unlike a function it can be sent."""

    jpeg: bytes

    def __call__(self) -> bytes:
        return self.jpeg


@dataclass(frozen=True, slots=True)
class _RemoteModel:
    """Asks the actor."""

    actor: Any

    async def ask(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            DataError: When no request at all can be answered.
        """
        known = await self.actor.is_known.remote(request.key)
        try:
            parts = [part if isinstance(part, str) else await _load(part, known) for part in request.parts]
        except DataError as error:
            return Reply(outcome=Outcome.DAMAGED_INPUT, text=str(error))
        reply = await self.actor.ask.remote(replace(request, parts=tuple(parts)))
        if isinstance(reply, DataError):
            raise reply
        return reply


async def _load(picture: Picture, known: bool) -> Picture:
    jpeg = b"" if known else await asyncio.to_thread(picture.load)
    return Picture(identity=picture.identity, load=_Loaded(jpeg))


def probe_on_cluster(paths: Sequence[Path], settings: BuildSettings) -> Iterator[SourceVideo | DataError]:
    """Look at files wherever there is a free processor.

    Yields:
        For each file in order what it is, or why it can't be read.

    Raises:
        UsageError: When Ray isn't installed, or the decoder or the detector of scenes on one of the machines.
    """
    rows = [{"place": place, "path": str(path.absolute())} for place, path in enumerate(paths)]
    found: dict[int, SourceVideo | DataError] = {}
    for row in _map(rows, lambda row: _probe_row(row, settings)):
        if row["is_usage_error"]:
            raise UsageError(row["error"])
        found[row["place"]] = (
            SourceVideo.model_validate_json(row["source"]) if row["source"] else DataError(row["error"])
        )
    yield from (found[place] for place in range(len(paths)))


def _probe_row(row: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
    try:
        source = probe_source(Path(row["path"]), settings).model_dump_json()
    except DataError as error:
        is_usage_error = isinstance(error, UsageError)
        return {"place": row["place"], "source": "", "error": str(error), "is_usage_error": is_usage_error}
    return {"place": row["place"], "source": source, "error": "", "is_usage_error": False}


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
    """Make the shards of some videos; each is written here as soon as it comes back.

    Args:
        sources: The videos.
        plan: What the build was told.
        shards: Where the shards go.
        base_url: Address of the server, as this machine knows it.
        output: The dataset's folder on this machine, with the journal and the ledger.
        progress: The bars to be moved.
        on_spent: Told what was asked so far, after each video.

    Raises:
        UsageError: When Ray isn't installed, or the address is none.
        DataError: When the server is of no use, or something can't be read or written.
    """
    ray = _start_ray()
    # Every node has a resource of its own name; a little of this one's keeps the actor where the journal is.
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    actor_class = ray.remote(num_cpus=0, resources=here, max_concurrency=1000)(_ClientActor)
    actor = actor_class.remote()
    try:
        error = ray.get(actor.open.remote(base_url, output.absolute(), plan, os.environ.get(API_KEY_VARIABLE)))
        if error is not None:
            raise error
        rows = [{"source": source.model_dump_json()} for source in sources]
        for row in _map(rows, lambda row: _generate_row(row, plan, actor)):
            if row["error"]:
                raise UsageError(row["error"]) if row["exit_code"] == UsageError.exit_code else DataError(row["error"])
            shard = VideoShard.model_validate_json(row["shard"])
            shards.write(shard)
            progress.advance_shard(num_segments=shard.source.num_segments, num_questions=shard.num_questions)
            on_spent(ray.get(actor.spent.remote()))
        spent: Spent = ray.get(actor.spent.remote())
        ray.get(actor.close.remote())
        return spent
    except ray.exceptions.RayError as failure:
        raise DataError(f"the Ray cluster failed ({brief(failure)}); run again to go on") from failure
    finally:
        ray.kill(actor)


def _generate_row(row: dict[str, Any], plan: BuildPlan, actor: object) -> dict[str, Any]:
    """Make the shard of one video; runs on the cluster."""
    source = SourceVideo.model_validate_json(row["source"])
    try:
        shard = asyncio.run(generate(source, plan, _RemoteModel(actor)))
    except DataError as error:
        return {"shard": "", "error": str(error), "exit_code": error.exit_code}
    return {"shard": shard.model_dump_json(), "error": "", "exit_code": 0}


def _map(
    rows: Sequence[dict[str, Any]], function: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Apply a function to every row on the cluster, one task per row, and yield the results as they come."""
    if not rows:
        return
    ray = _start_ray()
    from ray import data

    data.DataContext.get_current().enable_progress_bars = False
    try:
        yield from data.from_items(list(rows), override_num_blocks=len(rows)).map(function, num_cpus=1).iter_rows()
    except ray.exceptions.RayError as failure:
        raise DataError(f"the Ray cluster failed ({brief(failure)}); run again to go on") from failure


def _start_ray() -> Any:
    try:
        # Under `uv run`, Ray would start every worker by `uv run` too, which sets the environment up anew for each.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray; install longvideo-reason-data[ray]") from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            place = os.environ.get("RAY_ADDRESS", "this machine")
            raise DataError(f"no Ray cluster on {place} ({brief(error)}); check RAY_ADDRESS") from error
    return ray
