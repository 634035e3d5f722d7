"""What is true of the example file, computed with the standard library alone."""

from __future__ import annotations

import csv
import datetime as dt
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

FILE = Path(__file__).resolve().parents[3] / "examples" / "sales.csv"

type Row = dict[str, str]
type Cells = dict[str, list[float | None]]


def load(**conditions: str) -> list[Row]:
    """The rows whose columns have these values."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[c] == value for c, value in conditions.items())]


def total(rows: Iterable[Row], column: str = "revenue") -> float:
    return float(sum(Decimal(row[column]) for row in rows if row[column]))


def values(rows: Iterable[Row], column: str = "revenue") -> list[float]:
    return [float(row[column]) for row in rows if row[column]]


def period(rows: list[Row]) -> tuple[str, str]:
    return min(row["date"] for row in rows), max(row["date"] for row in rows)


def totals(rows: list[Row]) -> Cells:
    """With a value, total, mean, median, lowest, highest. A sum of prices says nothing."""
    found: Cells = {}
    for column in ("revenue", "unit_price", "units", "discount"):
        given = values(rows, column)
        summed = None if column in ("unit_price", "discount") else total(rows, column)
        middle, median = statistics.mean(given), statistics.median(given)
        found[column] = [len(given), summed, middle, median, min(given), max(given)]
    return found


def by(rows: list[Row], column: str) -> Cells:
    """Rows, total, share in percent, mean."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[column] or "(missing)"].append(row)
    everything = total(rows)
    return {
        name: [len(group), total(group), 100 * total(group) / everything, total(group) / len(group)]
        for name, group in groups.items()
    }


def over_time(rows: list[Row], length: int) -> Cells:
    """Rows, total, change in percent; `length` 7 gives months, 4 years."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["date"][:length]].append(row)
    found: Cells = {}
    before: float | None = None
    for name in sorted(groups):
        now = total(groups[name])
        change = 100 * (now - before) / before if before and before > 0 else None
        found[name] = [len(groups[name]), now, change]
        before = now
    return found


def trend(rows: list[Row]) -> dict[str, tuple[str, float]]:
    """Mean, best and weakest month, and the slope of the straight line through the months."""
    months = {name: cells[1] or 0.0 for name, cells in over_time(rows, 7).items()}
    best, worst = max(months, key=lambda m: months[m]), min(months, key=lambda m: months[m])
    line = statistics.linear_regression(range(len(months)), list(months.values()))
    return {
        "mean per month": (f"{len(months)} months", statistics.mean(months.values())),
        "best month": (best, months[best]),
        "weakest month": (worst, months[worst]),
        "trend per month": ("straight line", line.slope),
    }


def far_outliers(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Order: revenue, and distance from the median in robust deviations of the logarithm."""
    logs = {id(row): math.log(float(row["revenue"])) for row in rows if float(row["revenue"]) > 0}
    centre = statistics.median(logs.values())
    spread = 1.4826 * statistics.median(abs(value - centre) for value in logs.values())
    distances = {
        row["order_id"]: (logs[id(row)] - centre) / spread for row in rows if id(row) in logs
    }
    revenue = {row["order_id"]: float(row["revenue"]) for row in rows}
    return {
        order: (revenue[order], distance)
        for order, distance in distances.items()
        if abs(round(distance, 1)) > 5
    }


def below_zero(rows: list[Row]) -> list[float]:
    return [value for value in values(rows) if value < 0]


def missing(rows: list[Row]) -> Cells:
    """Rows without a value, and their share in percent."""
    counts = {column: sum(not row[column] for row in rows) for column in rows[0]}
    return {column: [count, 100 * count / len(rows)] for column, count in counts.items() if count}


def repeated(rows: list[Row]) -> int:
    return sum(count - 1 for count in Counter(tuple(row.values()) for row in rows).values())


def gaps(rows: list[Row]) -> list[tuple[str, str, int]]:
    """The five longest times without a row: over three days, and over four usual steps."""
    days = sorted({dt.date.fromisoformat(row["date"]) for row in rows})
    steps = [(late - early).days for early, late in pairwise(days)]
    limit = max(3, 4 * statistics.median(steps))
    found = [
        (early.isoformat(), late.isoformat(), (late - early).days - 1)
        for early, late in pairwise(days)
        if (late - early).days > limit
    ]
    return sorted(found, key=lambda gap: (-gap[2], gap[0]))[:5]
