"""A client of the server together with the journal and the ledger of the dataset that it works for.

Every command that asks a model opens one, so that they share what was answered and what may still be spent.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.records.folder import CALLS_NAME, RESPONSES_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was asked, as plain numbers that can be sent and written.

    Attributes:
        num_made: Answers that the server gave in this run.
        num_cached: Answers of this run from the journal.
        num_failed: Attempts of this run without an answer, by outcome.
        prompt_tokens: Tokens read in all runs on this dataset.
        completion_tokens: Tokens written in all runs on this dataset.
        cost: What all runs cost, or None without prices.
        unconfirmed_cost: The most that calls may have cost besides whose end wasn't seen, or None without prices.
        sampling: For each model how many answers of all runs were asked for with which sampling, by name and value.
        adaptations: For each model how many answers of all runs were asked for otherwise than written, by the way.
    """

    num_made: int
    num_cached: int
    num_failed: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    unconfirmed_cost: float | None
    adaptations: Mapping[str, Mapping[str, int]]
    sampling: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSession:
    """An open client.

    Attributes:
        model: The client.
        cache: The journal of its answers.
    """

    model: LanguageModel
    cache: ResponseCache

    def spent(self) -> Spent:
        """Sum up what was asked so far."""
        ledger = self.model.ledger
        return Spent(
            num_made=ledger.num_made,
            num_cached=ledger.num_cached,
            num_failed={str(outcome): count for outcome, count in sorted(ledger.num_failed.items())},
            prompt_tokens=ledger.usage.prompt_tokens,
            completion_tokens=ledger.usage.completion_tokens,
            cost=float(ledger.cost) if ledger.prices else None,
            unconfirmed_cost=float(ledger.unconfirmed_cost) if ledger.prices else None,
            adaptations=self.cache.adaptations(),
            sampling=self.cache.sampling(),
        )


@contextmanager
def open_session(
    base_url: str, dataset: Path, settings: ClientSettings, prices: Mapping[str, TokenPrice]
) -> Generator[ClientSession]:
    """Take hold of a dataset's journal and ledger, and make the client that the settings ask for.

    Args:
        base_url: Address of the server, up to and including `/v1`.
        dataset: The dataset's folder.
        settings: How the server is asked.
        prices: Of the models that will be asked.

    Raises:
        UsageError: When the address is none, or another process works on this dataset.
        DataError: When the journal or the ledger is damaged or can't be opened.
    """
    with (
        ResponseCache(dataset / RESPONSES_NAME) as cache,
        Ledger(path=dataset / CALLS_NAME, prices=dict(prices)) as ledger,
    ):
        model = LanguageModel(
            base_url,
            cache,
            ledger=ledger,
            num_parallel=settings.num_parallel,
            num_attempts=settings.num_attempts,
            timeout_seconds=settings.timeout_seconds,
            first_wait_seconds=settings.first_wait_seconds,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            max_cost=settings.exact_max_cost,
            picture_tokens=settings.picture_tokens,
        )
        yield ClientSession(model=model, cache=cache)
