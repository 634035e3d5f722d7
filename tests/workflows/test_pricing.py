from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from workflows.pricing import PRICES, cost_usd
from workflows.team import Price

MILLION = 1_000_000


def test_it_prices_input_and_output_apart() -> None:
    cost = cost_usd("gpt-4.1", input_tokens=MILLION, output_tokens=MILLION // 2)

    assert cost == Decimal("6.000000")


def test_it_is_exact_to_the_millionth_of_a_dollar() -> None:
    cost = cost_usd("gpt-4.1-nano", input_tokens=7, output_tokens=3)

    assert cost == Decimal("0.000002")


def test_it_does_not_know_the_price_of_an_unknown_model() -> None:
    assert cost_usd("llama3.2", input_tokens=10, output_tokens=10) is None


def test_it_does_not_guess_from_the_beginning_of_a_name() -> None:
    assert cost_usd("gpt-4.1-huge", input_tokens=10, output_tokens=10) is None


@pytest.mark.parametrize("name", ["gpt-4.1-2025-04-14", "gpt-4.1-20250414"])
def test_it_reads_a_dated_name_as_the_model(name: str) -> None:
    assert cost_usd(name, input_tokens=MILLION, output_tokens=0) == 2


def test_it_prefers_the_price_of_the_dated_name_itself() -> None:
    assert cost_usd("gpt-4o-2024-05-13", input_tokens=MILLION, output_tokens=0) == 5


def test_it_takes_the_price_of_the_day() -> None:
    before = cost_usd("o3", input_tokens=MILLION, output_tokens=0, on=date(2025, 6, 9))
    after = cost_usd("o3", input_tokens=MILLION, output_tokens=0, on=date(2025, 6, 10))

    assert (before, after) == (10, 2)


def test_it_knows_no_price_before_the_first() -> None:
    assert cost_usd("o3", input_tokens=1, output_tokens=1, on=date(2024, 1, 1)) is None


def test_it_prefers_the_teams_own_price() -> None:
    prices = {"gpt-4.1": Price(input=Decimal(100), output=Decimal(0))}

    cost = cost_usd("gpt-4.1", input_tokens=MILLION, output_tokens=0, prices=prices)

    assert cost == 100


def test_it_honours_a_price_of_zero() -> None:
    prices = {"llama3.2": Price(input=Decimal(0), output=Decimal(0))}

    assert cost_usd("llama3.2", input_tokens=10, output_tokens=10, prices=prices) == 0


def test_it_costs_nothing_offline() -> None:
    assert cost_usd("offline-rules", input_tokens=10, output_tokens=10) == 0


def test_it_lists_the_newest_price_first() -> None:
    dates = {model: [row.since for row in rows] for model, rows in PRICES.items()}

    assert dates == {model: sorted(days, reverse=True) for model, days in dates.items()}
