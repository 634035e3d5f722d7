"""What model calls cost: tokens × a dated price table → `Decimal` USD, or None when unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from .team import Price

OFFLINE = "offline-rules"
"""The label of the rule-based planner, which costs nothing."""

_MILLION = Decimal(1_000_000)
_MICRO_USD = Decimal("0.000001")
_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A list price from `since` on, in USD per million tokens."""

    since: date
    price: Price


def _rows(*prices: tuple[str, str, str]) -> tuple[_Row, ...]:
    """Newest first, each `(since, input, output)`."""
    return tuple(
        _Row(
            since=date.fromisoformat(since),
            price=Price(input=Decimal(input_usd), output=Decimal(output_usd)),
        )
        for since, input_usd, output_usd in prices
    )


# Source: OpenAI's public list prices for text tokens, standard tier (https://openai.com/api/pricing/),
# as published on 2025-08-07. Discounts for cached input and batches are not counted: figures are an
# upper bound. A team's own `prices` come before this table.
PRICES: Mapping[str, tuple[_Row, ...]] = {
    "gpt-5": _rows(("2025-08-07", "1.25", "10")),
    "gpt-5-mini": _rows(("2025-08-07", "0.25", "2")),
    "gpt-5-nano": _rows(("2025-08-07", "0.05", "0.40")),
    "gpt-4.1": _rows(("2025-04-14", "2", "8")),
    "gpt-4.1-mini": _rows(("2025-04-14", "0.40", "1.60")),
    "gpt-4.1-nano": _rows(("2025-04-14", "0.10", "0.40")),
    "gpt-4o": _rows(("2024-10-02", "2.50", "10"), ("2024-05-13", "5", "15")),
    "gpt-4o-2024-05-13": _rows(("2024-05-13", "5", "15")),
    "gpt-4o-mini": _rows(("2024-07-18", "0.15", "0.60")),
    "o4-mini": _rows(("2025-04-16", "1.10", "4.40")),
    "o3": _rows(("2025-06-10", "2", "8"), ("2025-04-16", "10", "40")),
    "o3-mini": _rows(("2025-01-31", "1.10", "4.40")),
    "o1": _rows(("2024-12-17", "15", "60")),
}


def cost_usd(
    model: str,
    *,
    input_tokens: int,
    output_tokens: int,
    prices: Mapping[str, Price] | None = None,
    on: date | None = None,
) -> Decimal | None:
    """What the tokens cost in USD, to the millionth, or None when the model's price is unknown.

    `prices` are the team's own. A dated name such as `gpt-4o-2024-08-06` costs what the name
    without its date costs, unless it has a price itself. `on` chooses the list price of that day
    (UTC; today by default).
    """
    if model == OFFLINE:
        return Decimal(0)
    price = _price(model, prices or {}, on or datetime.now(UTC).date())
    if price is None:
        return None
    total = input_tokens * price.input + output_tokens * price.output
    return (total / _MILLION).quantize(_MICRO_USD)


def _price(model: str, own: Mapping[str, Price], on: date) -> Price | None:
    for name in (model, _DATED.sub("", model)):
        if price := own.get(name) or _listed(name, on):
            return price
    return None


def _listed(model: str, on: date) -> Price | None:
    return next((row.price for row in PRICES.get(model, ()) if row.since <= on), None)
