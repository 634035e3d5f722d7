from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.template import Context, Template

from workflows.templatetags import fleet


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Decimal("0.0123"), "$0.0123"),
        (Decimal("0.1"), "$0.10"),
        (Decimal("1234.5"), "$1,234.50"),
        (Decimal(0), "$0.00"),
        ("0.5", "$0.50"),
        (None, "cost unknown"),
        ("many", "cost unknown"),
    ],
)
def test_it_shows_money(amount: Any, text: str) -> None:
    assert fleet.money(amount) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "0"), (9_999, "9,999"), (12_345, "12.3k"), (4_100_000, "4.1M")]
)
def test_it_shortens_large_numbers(number: int | None, text: str) -> None:
    assert fleet.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (134, "02:14"), (3_734, "1:02:14"), (-5, "00:00")]
)
def test_it_shows_a_duration_as_a_clock(seconds: int, text: str) -> None:
    assert fleet.duration(timedelta(seconds=seconds)) == text


def test_it_shows_no_duration_before_the_start() -> None:
    assert fleet.duration(None) == ""


@pytest.mark.parametrize(("number", "text"), [(None, "0 ms"), (950, "950 ms"), (1_400, "1.4 s")])
def test_it_shows_milliseconds(number: int | None, text: str) -> None:
    assert fleet.milliseconds(number) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"sql": "SELECT\n  1", "limit": 5}, "sql: SELECT 1, limit: 5"),
        ("plain\n text", "plain text"),
        (["a", 1], '["a", 1]'),
        ("x" * 500, "x" * 119 + "…"),
    ],
)
def test_it_tells_the_gist_on_one_line(value: Any, text: str) -> None:
    assert fleet.gist(value) == text


def test_it_indents_json_and_leaves_text() -> None:
    assert fleet.pretty({"é": [1]}) == '{\n  "é": [\n    1\n  ]\n}'
    assert fleet.pretty("not\njson") == "not\njson"


def test_it_keeps_the_beginning_of_an_id() -> None:
    assert fleet.short_id("3f2a9c10-aaaa") == "3f2a9c10"


def test_it_marks_a_time_up_for_the_reader() -> None:
    moment = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)

    html = Template("{% load fleet %}{% local_time moment %}").render(Context({"moment": moment}))

    assert '<time datetime="2026-03-01T12:30:00+00:00" data-local-time>' in html


def test_it_says_a_status_in_a_word() -> None:
    html = Template("{% load fleet %}{% status 'waiting' %}").render(Context())

    assert "Waiting</span>" in html
    assert "pill--waiting" in html
