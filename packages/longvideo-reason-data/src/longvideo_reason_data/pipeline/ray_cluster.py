"""The Ray cluster for the stages of a build: Ray Data distributes the work, one actor sends requests to the server.

The client and its journal are in a single actor on the same machine as this process, so that limits, costs and "nothing
is paid twice" hold for the cluster as for one machine, and a build may continue with the other engine. `ray.init` finds
the cluster: that of `RAY_ADDRESS`, or one that it starts here.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrl_files.folders import FOLLOWED_VARIABLE
from longvideo_reason_data.errors import DataError, UsageError, brief
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.requests import Outcome, Picture, Reply, Request
from longvideo_reason_data.language_model.session import Spent, open_session
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.language_model.transport.redaction import API_KEY_VARIABLE

_CLOSE_SECONDS = 60.0  # longer than a client waits for pending answers


class _ClientActor:
    """The only client of the server: runs in its own process, holds the journal and serves all tasks."""

    def open(
        self,
        base_url: str,
        output: Path,
        settings: ClientSettings,
        prices: Mapping[str, TokenPrice],
        api_key: str | None,
    ) -> DataError | None:
        """Open journal and ledger and create the client. An error is returned, because Ray would wrap it."""
        self._files = ExitStack()
        if api_key is not None:  # passed as an argument, because Ray logs environment settings
            os.environ[API_KEY_VARIABLE] = api_key
        try:
            self._session = self._files.enter_context(open_session(base_url, output, settings, prices))
        except DataError as error:
            return error
        return None

    def is_known(self, key: str) -> bool:
        """Return whether a request was answered before, so that its images needn't be encoded."""
        return key in self._session.cache

    async def ask(self, request: Request) -> Reply | DataError:
        """Answer a request. An error that concerns every request is returned too."""
        try:
            return await self._session.model.ask(request)
        except DataError as error:
            return error

    def spent(self) -> Spent:
        """The usage so far."""
        return self._session.spent()

    async def close(self) -> None:
        """Close the client and the files."""
        await self._session.model.__aexit__(None, None, None)
        self._files.close()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An encoded image; unlike a function it can be sent."""

    jpeg: bytes

    def __call__(self) -> bytes:
        return self.jpeg


class ClusterClient:
    """Sends requests through the actor, from anywhere on the cluster.

    Args:
        actor: The actor.
        num_parallel: Maximum pending requests of one task; their images are in memory.
    """

    def __init__(self, actor: Any, num_parallel: int) -> None:
        self._actor, self._num_parallel = actor, num_parallel
        self._sending = asyncio.Semaphore(num_parallel)

    def __reduce__(self) -> tuple[Any, ...]:
        return ClusterClient, (self._actor, self._num_parallel)

    async def ask(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            DataError: When no request at all can be answered.
        """
        async with self._sending:
            known = await self._actor.is_known.remote(request.key)
            try:
                parts = [part if isinstance(part, str) else await _load(part, known) for part in request.parts]
            except DataError as error:
                return Reply(outcome=Outcome.DAMAGED_INPUT, text=str(error))
            reply = await self._actor.ask.remote(replace(request, parts=tuple(parts)))
        if isinstance(reply, DataError):
            raise reply
        return reply

    def spent(self) -> Spent:
        """The usage of all tasks so far."""
        return start_ray().get(self._actor.spent.remote())


async def _load(picture: Picture, known: bool) -> Picture:
    jpeg = b"" if known else await asyncio.to_thread(picture.load)
    return Picture(identity=picture.identity, load=_Loaded(jpeg))


@contextmanager
def open_client(
    base_url: str, dataset: Path, settings: ClientSettings, prices: Mapping[str, TokenPrice]
) -> Generator[ClusterClient]:
    """Start the actor, and wait for pending answers when it ends.

    Args:
        base_url: Address of the server, as seen from this machine.
        dataset: The dataset's folder on this machine, with the journal and the ledger.
        settings: Settings of the client.
        prices: Prices of the models in use.

    Raises:
        UsageError: When Ray isn't installed, the address is invalid, or another process is using this dataset.
        DataError: When the journal or the ledger is damaged, or the cluster fails.
    """
    ray = start_ray()
    # Every node has a resource of its own name; a little of this one's keeps the actor where the journal is.
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    actor_class = ray.remote(num_cpus=0, resources=here, max_concurrency=1000)(_ClientActor)
    actor = actor_class.remote()
    try:
        key = os.environ.get(API_KEY_VARIABLE)
        error = ray.get(actor.open.remote(base_url, dataset.absolute(), settings, dict(prices), key))
        if error is not None:
            raise error
        try:
            yield ClusterClient(actor, settings.num_parallel)
        finally:
            ray.get(actor.close.remote(), timeout=_CLOSE_SECONDS)
    except ray.exceptions.RayError as failure:
        raise DataError(f"the Ray cluster failed ({brief(failure)}); run again to go on") from failure
    finally:
        ray.kill(actor)


def map_texts(texts: Sequence[str], function: Callable[[str], str]) -> Iterator[str]:
    """Apply a function to every text on the cluster, one task each.

    Yields:
        The results as they come.

    Raises:
        UsageError: When Ray isn't installed, or the function raises one.
        DataError: When the function raises one, or the cluster fails.
    """
    if not texts:
        return
    ray = start_ray()
    from ray import data

    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it prints its plans to standard error
    rows = data.from_items([{"text": text} for text in texts], override_num_blocks=len(texts))
    try:
        for row in rows.map(lambda row: _apply(function, row["text"]), num_cpus=1).iter_rows():
            if row["exit_code"]:
                kind = UsageError if row["exit_code"] == UsageError.exit_code else DataError
                raise kind(row["text"])
            yield row["text"]
    except ray.exceptions.RayError as failure:
        raise DataError(f"the Ray cluster failed ({brief(failure)}); run again to go on") from failure


def _apply(function: Callable[[str], str], text: str) -> dict[str, Any]:
    """Run on the cluster. An error is returned as text, because Ray would wrap it."""
    try:
        return {"text": function(text), "exit_code": 0}
    except DataError as error:
        return {"text": str(error), "exit_code": error.exit_code}


def start_ray() -> Any:
    """Import Ray and join the cluster, or start one here.

    Raises:
        UsageError: When Ray isn't installed.
        DataError: When there is no cluster at the address.
    """
    try:
        # Under `uv run`, Ray would also start every worker with `uv run`, which sets up the environment for each.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray; install longvideo-reason-data[ray]") from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            inherited = {name: os.environ[name] for name in (FOLLOWED_VARIABLE,) if name in os.environ}
            ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env={"env_vars": inherited})
        except (ConnectionError, RuntimeError, ValueError) as error:
            place = os.environ.get("RAY_ADDRESS", "this machine")
            raise DataError(f"no Ray cluster on {place} ({brief(error)}); check RAY_ADDRESS") from error
    return ray
