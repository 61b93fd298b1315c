"""What every call to a server cost: one line before it is sent, one line when it has ended.

The sum of what servers reported is exact to the token. What a call cost whose end wasn't seen (a time-out, a connection
that broke off, a process that was killed) can't be known here; such a call counts as unconfirmed with the most that it
can have cost, so that a limit on the cost holds even if all of them were charged for.

The lines survive the end of this process at any moment. An answer's own line in the response cache carries the name
of its call, so a call whose answer was kept but whose end wasn't written is completed from there.
"""

import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast

from pydantic import BaseModel, ConfigDict

from longrl_files.json_text import parse_json
from longvideo_reason_data.language_model.accounts.journal import Journal
from longvideo_reason_data.language_model.accounts.prices import Amount, Count, TokenPrice, TokenUsage, dearest_price
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache, StoredResponse
from longvideo_reason_data.language_model.requests import Outcome


class CallStarted(BaseModel):
    """A request that is about to be sent.

    Attributes:
        call: Name of the call, unique in the ledger.
        key: Digest of the request, as in the response cache.
        model: Who is asked.
        attempt: How often this request was sent in this run, from 1.
        most_prompt_tokens: Bound on the tokens that it reads.
        most_completion_tokens: Bound on the tokens that it writes.
        price: What the model's tokens cost then, if that was known; a later run may not name the model at all.
        time: When, in seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["started"] = "started"
    call: str
    key: str
    model: str
    attempt: int
    most_prompt_tokens: Count
    most_completion_tokens: Count
    price: TokenPrice | None = None
    time: float


class CallEnded(BaseModel):
    """How a call ended.

    Attributes:
        call: Its name.
        outcome: What came of it; ANSWERED also for unusable answers, which are charged for like others.
        usage: Tokens as the server reported them.
        is_confirmed: Whether that is all that can have been charged for.
        cost: Price of the tokens, or None without prices.
        latency_seconds: From sending to the end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["ended"] = "ended"
    call: str
    outcome: Outcome
    usage: TokenUsage = TokenUsage()
    is_confirmed: bool = True
    cost: Amount | None = None
    latency_seconds: float


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Counts of this run, and of all runs in the file.

    A context manager that holds the file. Without a path it counts this run only.

    Attributes:
        path: The ledger's file, made when it doesn't exist.
        prices: Price of each model; models without one have no cost. Calls of earlier runs keep the price that they
            were made at; one that had none and whose model isn't among these counts at the dearest of them.
        num_made: Answers that the server gave in this run.
        num_cached: Answers of this run taken from the journal, or shared with an equal request under way.
        num_failed: Attempts of this run without an answer, by outcome.
        usage: Tokens that servers reported, in all runs.
        cost: Their price, in all runs, as far as prices are known.
        num_unconfirmed: Calls of all runs that may have been charged for without our knowing, those under way included.
        unconfirmed_cost: The most that these can have cost.
    """

    path: Path | None = None
    prices: dict[str, TokenPrice] = field(default_factory=dict[str, TokenPrice])
    num_made: int = 0
    num_cached: int = 0
    num_failed: dict[Outcome, int] = field(default_factory=dict[Outcome, int])
    usage: TokenUsage = field(default_factory=TokenUsage)
    cost: Decimal = Decimal(0)
    num_unconfirmed: int = 0
    unconfirmed_cost: Decimal = Decimal(0)
    _journal: Journal | None = field(default=None, init=False)
    _open: dict[str, CallStarted] = field(default_factory=dict[str, CallStarted], init=False)
    _num_calls: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        if self.path is not None:
            self._journal = Journal(self.path, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    @property
    def most_cost(self) -> Decimal:
        """The most that all calls so far can have cost, those under way included."""
        return self.cost + self.unconfirmed_cost

    def most_cost_of(self, model: str, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """Bound the cost of a call; 0 for a model without a price."""
        price = self.prices.get(model)
        return price.most_cost(prompt_tokens, completion_tokens) if price else Decimal(0)

    def start(self, *, key: str, model: str, attempt: int, most_prompt: int, most_completion: int) -> CallStarted:
        """Write down a call before it is sent."""
        self._num_calls += 1
        started = CallStarted(
            call=f"{self._num_calls}-{key[:12]}",
            key=key,
            model=model,
            attempt=attempt,
            most_prompt_tokens=most_prompt,
            most_completion_tokens=most_completion,
            price=self.prices.get(model),
            time=round(time.time(), 3),
        )
        self._write(started)
        self._count_start(started)
        return started

    def end(
        self, started: CallStarted, outcome: Outcome, usage: TokenUsage, *, is_confirmed: bool, latency_seconds: float
    ) -> None:
        """Write down how a call ended."""
        self._end(started, outcome, usage, is_confirmed=is_confirmed, latency_seconds=round(latency_seconds, 4))
        if outcome is Outcome.ANSWERED:
            self.num_made += 1
        else:
            self.num_failed[outcome] = self.num_failed.get(outcome, 0) + 1

    def complete_from(self, cache: ResponseCache) -> None:
        """Write the ends that are missing of calls whose answers were kept."""
        for started in list(self._open.values()):
            stored = cache.get(started.key)
            if stored is not None and stored.call == started.call:
                self._end(started, Outcome.ANSWERED, usage_of(stored), is_confirmed=True, latency_seconds=0)

    def _take(self, offset: int, line: bytes) -> None:
        fields = cast(dict[str, object], parse_json(line))
        if fields.get("event") == "started":
            self._count_start(CallStarted.model_validate(fields))
            self._num_calls += 1
        else:
            self._count_end(CallEnded.model_validate(fields))

    def _end(
        self, started: CallStarted, outcome: Outcome, usage: TokenUsage, *, is_confirmed: bool, latency_seconds: float
    ) -> None:
        ended = CallEnded(
            call=started.call,
            outcome=outcome,
            usage=usage,
            is_confirmed=is_confirmed,
            cost=started.price.cost(usage) if started.price else None,
            latency_seconds=latency_seconds,
        )
        self._write(ended)
        self._count_end(ended)

    def _write(self, line: CallStarted | CallEnded) -> None:
        if self._journal is not None:
            self._journal.append([line.model_dump_json().encode() + b"\n"], durable=False)

    def _count_start(self, started: CallStarted) -> None:
        self._open[started.call] = started
        self.num_unconfirmed += 1
        self.unconfirmed_cost += self._most_cost(started)

    def _count_end(self, ended: CallEnded) -> None:
        started = self._open.pop(ended.call)
        self.usage += ended.usage
        if ended.is_confirmed:
            self.num_unconfirmed -= 1
            self.unconfirmed_cost -= self._most_cost(started)
            price = self._price_of(started)
            self.cost += ended.cost if ended.cost is not None else price.cost(ended.usage) if price else 0

    def _most_cost(self, started: CallStarted) -> Decimal:
        price = self._price_of(started)
        return price.most_cost(started.most_prompt_tokens, started.most_completion_tokens) if price else Decimal(0)

    def _price_of(self, started: CallStarted) -> TokenPrice | None:
        """The price of a call: that of its time, else today's of its model, else the dearest of today's."""
        return started.price or self.prices.get(started.model) or dearest_price(self.prices.values())


def usage_of(stored: StoredResponse) -> TokenUsage:
    """The tokens of a kept answer."""
    return TokenUsage(
        prompt_tokens=stored.prompt_tokens,
        cached_prompt_tokens=stored.cached_prompt_tokens,
        completion_tokens=stored.completion_tokens,
        reasoning_tokens=stored.reasoning_tokens,
    )
