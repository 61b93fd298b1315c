"""Running the stages that ask a model in this process: many videos side by side, through one client of the server."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from longvideo_reason_data.build_plan import BuildPlan
from longvideo_reason_data.build_settings import BuildSettings
from longvideo_reason_data.errors import DataError, first_error
from longvideo_reason_data.generation import Advance, generate
from longvideo_reason_data.language_model import LanguageModel
from longvideo_reason_data.manifest import Spending
from longvideo_reason_data.response_cache import ResponseCache
from longvideo_reason_data.shards import ShardFolder
from longvideo_reason_data.sources import SourceVideo


def open_client(base_url: str, cache: ResponseCache, settings: BuildSettings) -> LanguageModel:
    """Make the client that the settings ask for.

    Raises:
        UsageError: When the address is none.
    """
    return LanguageModel(
        base_url,
        cache,
        num_parallel=settings.num_parallel,
        num_attempts=settings.num_attempts,
        timeout_seconds=settings.timeout_seconds,
        first_wait_seconds=settings.first_wait_seconds,
    )


def sum_up(client: LanguageModel, cache: ResponseCache) -> Spending:
    """Count what was asked so far."""
    prompt_tokens, completion_tokens = cache.total_tokens()
    return Spending(ledger=client.ledger, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def generate_here(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    shards: ShardFolder,
    *,
    base_url: str,
    journal: Path,
    advance: Advance,
    on_spending: Callable[[Spending], None],
) -> Spending:
    """Make the shards of some videos.

    Args:
        sources: The videos.
        plan: What the build was told.
        shards: Where the shards go.
        base_url: Address of the server.
        journal: The journal of answers.
        advance: Whom to tell about segments and questions.
        on_spending: Told what was asked so far, after each video.

    Raises:
        DataError: When the server is of no use, or something can't be read or written.
    """
    with ResponseCache(journal) as cache:
        return asyncio.run(_generate_all(sources, plan, shards, base_url, cache, advance, on_spending))


async def _generate_all(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    shards: ShardFolder,
    base_url: str,
    cache: ResponseCache,
    advance: Advance,
    on_spending: Callable[[Spending], None],
) -> Spending:
    remaining = iter(sources)
    client = open_client(base_url, cache, plan.settings)

    async def work() -> None:
        for source in remaining:  # all workers take from one iterator, so that each video is taken once
            shard = await generate(source, plan, client, advance)
            await asyncio.to_thread(shards.write, shard)
            on_spending(sum_up(client, cache))

    async with client:
        try:
            async with asyncio.TaskGroup() as tasks:
                # As many videos at a time as there may be requests: a video waits for one caption after the other.
                for _ in range(min(plan.settings.num_parallel, len(sources))):
                    tasks.create_task(work())
        except* DataError as group:
            raise first_error(group) from None
        return sum_up(client, cache)
