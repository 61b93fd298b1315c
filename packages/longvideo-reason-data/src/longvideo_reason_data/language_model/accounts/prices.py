"""What tokens cost, exactly: decimals, never binary fractions.

Prices are the user's to give; none is known here, because they change and differ between servers.
"""

from collections.abc import Collection
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

_PRICED_TOKENS = 1_000_000


class TokenUsage(BaseModel):
    """Tokens as a server counts them.

    Attributes:
        prompt_tokens: Tokens read.
        cached_prompt_tokens: Those of them that the server had at hand from an earlier request.
        completion_tokens: Tokens written.
        reasoning_tokens: Those of them that were reasoning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_tokens: Count = 0
    cached_prompt_tokens: Count = 0
    completion_tokens: Count = 0
    reasoning_tokens: Count = 0

    @property
    def total(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "TokenUsage") -> "TokenUsage":
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens + other.cached_prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


class TokenPrice(BaseModel):
    """What a million tokens of a model cost, in any one currency.

    Attributes:
        prompt: Tokens read.
        completion: Tokens written, reasoning included.
        cached_prompt: Tokens read that the server had at hand; the same as `prompt` when not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Amount
    completion: Amount
    cached_prompt: Amount | None = None

    def cost(self, usage: TokenUsage) -> Decimal:
        """Price the tokens of a call."""
        cached = min(usage.cached_prompt_tokens, usage.prompt_tokens)
        cached_price = self.prompt if self.cached_prompt is None else self.cached_prompt
        fresh_cost = (usage.prompt_tokens - cached) * self.prompt
        return (fresh_cost + cached * cached_price + usage.completion_tokens * self.completion) / _PRICED_TOKENS

    def most_cost(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """Bound the price of a call from bounds of its tokens, whichever of them the server has at hand."""
        dearest = max(self.prompt, self.cached_prompt or self.prompt)
        return (prompt_tokens * dearest + completion_tokens * self.completion) / _PRICED_TOKENS


def dearest_price(prices: Collection[TokenPrice]) -> TokenPrice | None:
    """Give a price that none of some prices exceeds for any tokens; None when there are none."""
    if not prices:
        return None
    return TokenPrice(
        prompt=max(price.most_cost(_PRICED_TOKENS, 0) for price in prices),
        completion=max(price.completion for price in prices),
    )
