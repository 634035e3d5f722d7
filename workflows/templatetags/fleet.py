"""How the pages show values: one filter for each kind, the same everywhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from django import template
from django.utils.safestring import SafeString, mark_safe

from workflows import markdown as text_markup
from workflows.models import Event, Run
from workflows.transcript import Plan, Step

register = template.Library()


@register.filter
def markdown(text: str, top: int = 4) -> SafeString:
    """Sanitised HTML whose highest heading is of level `top`."""
    return mark_safe(text_markup.render(text, top=top))  # noqa: S308  # passed the allow-list


@register.filter
def split_plan(text: str) -> Plan:
    return Plan.of(text)


@register.filter
def step(event: Event) -> Step:
    return Step.of(event)


@register.filter
def money(amount: Decimal | str | float | None) -> str:
    """US dollars: four digits below ten cents, two above; None means that no price is known."""
    if amount is None:
        return "cost unknown"
    try:
        value = Decimal(str(amount))
    except InvalidOperation:
        return "cost unknown"
    if value == 0:
        return "$0.00"
    return f"${value:,.4f}" if abs(value) < Decimal("0.1") else f"${value:,.2f}"


@register.filter
def count(number: int | None) -> str:
    """A number that stays short: 950, 12.3k, 4.1M."""
    value = number or 0
    for limit, unit in ((1_000_000, "M"), (10_000, "k")):
        if value >= limit:
            return f"{value / (1_000_000 if unit == 'M' else 1_000):.1f}{unit}"
    return f"{value:,}"


@register.filter
def short_id(identifier: object) -> str:
    """The first eight characters: enough to tell two apart on one page."""
    return str(identifier)[:8]


@register.filter
def duration(span: timedelta | None) -> str:
    """A span as a clock shows it: 02:14, or 1:02:14 from an hour on."""
    if span is None:
        return ""
    minutes, seconds = divmod(max(0, int(span.total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


@register.filter
def milliseconds(number: int | None) -> str:
    value = number or 0
    return f"{value} ms" if value < 1000 else f"{value / 1000:.1f} s"


@register.filter
def pretty(value: Any) -> str:
    """JSON with its lines indented; text as it is."""
    if isinstance(value, str):
        return value
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


@register.filter
def gist(value: Any) -> str:
    """The beginning of a value on one line, for a summary that folds the rest away."""
    text = value if isinstance(value, str) else _arguments(value)
    line = " ".join(text[:400].split())
    return line if len(line) <= 120 else f"{line[:119]}…"


@register.filter
def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _arguments(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@register.inclusion_tag("components.html#time")
def local_time(moment: datetime | None) -> dict[str, datetime | None]:
    """A `<time>` in UTC that a small script turns into the reader's own zone."""
    return {"moment": moment}


@register.inclusion_tag("components.html#icon")
def icon(name: str) -> dict[str, str]:
    """A drawing from the sprite. It says nothing by itself: a word stands beside it."""
    return {"name": name}


@register.inclusion_tag("components.html#status")
def status(value: str) -> dict[str, str]:
    """A run's status as icon, word and colour."""
    return {"status": value, "word": Run.Status(value).label}
