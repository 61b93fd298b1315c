"""How tests ask a language model: one client, all requests at once, books and journal in a folder."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

from longvideo_reason_data.language_model import LanguageModel
from longvideo_reason_data.ledger import Ledger
from longvideo_reason_data.model_requests import Reply, Request
from longvideo_reason_data.prices import TokenPrice
from longvideo_reason_data.response_cache import ResponseCache

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
    """Ask everything at once and give the replies in order, with the ledger as it is at the end."""

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
