"""How tests use a language model: one client, all requests at once, ledger and journal in a folder."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.requests import Reply, Request

PRICE = TokenPrice(prompt=Decimal("0.7"), completion=Decimal("2.9"))


def request(text: str = "hello", **changes: Any) -> Request:
    return Request(model="model", parts=(text,), **changes)


def ask(
    server: Any,
    folder: Path,
    *requests: Request,
    base_url: str | None = None,
    price: TokenPrice | None = None,
    **settings: Any,
) -> tuple[list[Reply], Ledger]:
    """Send all requests at once and return the replies in order, with the final ledger."""

    async def run(cache: ResponseCache, ledger: Ledger) -> list[Reply]:
        settings.setdefault("first_wait_seconds", 0.01)
        async with LanguageModel(base_url or server.base_url, cache, ledger=ledger, **settings) as client:
            return list(await asyncio.gather(*(client.ask(request) for request in requests)))

    prices = {"model": price} if price else {}
    with (
        ResponseCache(folder / "responses.jsonl") as cache,
        Ledger(path=folder / "calls.jsonl", prices=prices) as ledger,
    ):
        return asyncio.run(run(cache, ledger)), ledger
