"""Runs the stages that use a model in this process: many videos in parallel, through one client of the server."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from longvideo_reason_data.errors import DataError, first_error
from longvideo_reason_data.generation.one_video import Advance, generate
from longvideo_reason_data.generation.plan import BuildPlan
from longvideo_reason_data.generation.shards import ShardFolder
from longvideo_reason_data.generation.sources import SourceVideo
from longvideo_reason_data.language_model.session import ClientSession, Spent, open_session


def generate_here(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    shards: ShardFolder,
    *,
    base_url: str,
    output: Path,
    advance: Advance,
    on_spent: Callable[[Spent], None],
) -> Spent:
    """Create the shards of some videos.

    Args:
        sources: The videos.
        plan: The settings of the build.
        shards: Where the shards are written.
        base_url: Address of the server.
        output: The dataset's folder, with the journal and the ledger.
        advance: Callbacks for segments and questions.
        on_spent: Called with the usage so far, after each video.

    Raises:
        DataError: When the server can't be used, or something can't be read or written.
    """
    prices = plan.settings.model_prices(plan.captioner, plan.model)
    with open_session(base_url, output, plan.settings, prices) as session:
        return asyncio.run(_generate_all(sources, plan, shards, session, advance, on_spent))


async def _generate_all(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    shards: ShardFolder,
    session: ClientSession,
    advance: Advance,
    on_spent: Callable[[Spent], None],
) -> Spent:
    remaining = iter(sources)

    async def work() -> None:
        for source in remaining:  # all workers share one iterator, so that each video is processed once
            shard = await generate(source, plan, session.model, advance)
            await asyncio.to_thread(shards.write, shard)
            on_spent(session.spent())

    async with session.model:
        try:
            async with asyncio.TaskGroup() as tasks:
                # As many videos at a time as parallel requests, because a video waits for one caption after the other.
                for _ in range(min(plan.settings.num_parallel, len(sources))):
                    tasks.create_task(work())
        except* DataError as group:
            raise first_error(group) from None
        return session.spent()
