"""What every command that asks a language model can be told about asking, and what it may cost."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.requests import PICTURE_TOKENS

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ClientSettings(BaseModel):
    """How the server is asked.

    Attributes:
        num_parallel: Most requests under way at a time.
        num_attempts: How often a request is sent before its item is dropped.
        timeout_seconds: Longest wait for one answer.
        first_wait_seconds: Wait before the second attempt.
        requests_per_minute: Most requests per minute.
        tokens_per_minute: Most tokens per minute, on average.
        prompt_price: Price of a million tokens read, of the dearest model; with both prices given, the manifest states
            the cost.
        completion_price: Price of a million tokens written, of the dearest model.
        max_cost: Most that this dataset may cost, over all runs and commands; needs the prices.
        picture_tokens: Most tokens that the server counts for a picture; `max_cost` rests on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_parallel: Annotated[int, Field(ge=1)] = 16
    num_attempts: Annotated[int, Field(ge=1)] = 6
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    first_wait_seconds: Annotated[float, Field(ge=0)] = 1.0
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    prompt_price: Price | None = None
    completion_price: Price | None = None
    max_cost: Price | None = None
    picture_tokens: Annotated[int, Field(ge=1)] = PICTURE_TOKENS

    def prices(self, *models: str | None) -> dict[str, TokenPrice]:
        """Give the price of each model, or none when they aren't known.

        Raises:
            UsageError: When they aren't known though the cost is limited.
        """
        if self.prompt_price is None or self.completion_price is None:
            if self.max_cost is not None:
                raise UsageError(
                    f"--max-cost {self.max_cost:g}: the prices aren't known; "
                    "give --prompt-price and --completion-price, per million tokens"
                )
            return {}
        price = TokenPrice(prompt=exact(self.prompt_price), completion=exact(self.completion_price))
        return {model: price for model in models if model is not None}

    @property
    def exact_max_cost(self) -> Decimal | None:
        """The limit on the cost as it was written, without the error of a binary fraction."""
        return None if self.max_cost is None else exact(self.max_cost)


def exact(amount: float) -> Decimal:
    """Turn an amount into the decimal that was written."""
    return Decimal(str(amount))
