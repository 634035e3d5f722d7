"""Make `sales.csv`: two years of made-up orders, with the flaws that real exports have.

The same file comes out every time. Flaws on purpose: missing regions, discounts and prices; one
week without any order; one order of a hundred times its size; returns; one row entered twice.

    python examples/make_sales.py            writes sales.csv beside this file
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

SEED = 20_260_101
ORDERS = 3_000
FIRST_DAY = dt.date(2024, 1, 1)
LAST_DAY = dt.date(2025, 12, 31)
SILENT_WEEK = (dt.date(2024, 8, 12), dt.date(2024, 8, 18))

COLUMNS = (
    "order_id",
    "date",
    "region",
    "country",
    "product",
    "category",
    "segment",
    "sales_rep",
    "units",
    "unit_price",
    "discount",
    "revenue",
)
REGIONS = {
    "EMEA": (("Germany", 5), ("France", 4), ("United Kingdom", 4), ("Spain", 2), ("Egypt", 1)),
    "AMER": (("United States", 9), ("Canada", 3)),
    "APAC": (("Japan", 4), ("Australia", 3), ("India", 3), ("Singapore", 1)),
    "LATAM": (("Brazil", 3), ("Mexico", 2), ("Chile", 1)),
}
REGION_WEIGHTS = {"EMEA": 34, "AMER": 36, "APAC": 20, "LATAM": 10}
PRODUCTS = {  # category, list price in USD, weight
    "Atlas Desk": ("Furniture", "480.00", 9),
    "Orbit Chair": ("Furniture", "320.00", 14),
    "Pier Shelf": ("Furniture", "140.00", 8),
    "Lumen Lamp": ("Lighting", "65.00", 17),
    "Halo Panel": ("Lighting", "210.00", 7),
    "Quiet Booth": ("Rooms", "3900.00", 2),
    "Fold Screen": ("Rooms", "260.00", 8),
    "Dock Hub": ("Electronics", "120.00", 15),
    "Wave Headset": ("Electronics", "95.00", 20),
}
SEGMENTS = {"Enterprise": 3, "Mid-market": 4, "Small business": 5}
REPS = {
    "EMEA": ("Dana Weiss", "Luc Moreau", "Amira Said"),
    "AMER": ("Jo Carter", "Sam Ortiz", "Lee Novak"),
    "APAC": ("Yuki Tanaka", "Priya Nair"),
    "LATAM": ("Rafael Lima", "Elena Cruz"),
}


def orders(chance: random.Random) -> Iterator[dict[str, str]]:
    """The rows in order of date."""
    for number, day in enumerate(_days(chance), 1):
        yield _order(chance, number, day)


def _days(chance: random.Random) -> list[dt.date]:
    span = (LAST_DAY - FIRST_DAY).days + 1
    days = [FIRST_DAY + dt.timedelta(days=offset) for offset in range(span)]
    open_days = [day for day in days if not SILENT_WEEK[0] <= day <= SILENT_WEEK[1]]
    return sorted(chance.choices(open_days, weights=[_demand(day) for day in open_days], k=ORDERS))


def _demand(day: dt.date) -> float:
    """More in late autumn, less in summer and on weekends, and a slow growth."""
    season = 1 + 0.3 * math.cos(2 * math.pi * (day.timetuple().tm_yday - 330) / 365)
    growth = 1 + 0.2 * (day - FIRST_DAY).days / 730
    return season * growth * (0.35 if day.weekday() >= 5 else 1.0)


def _order(chance: random.Random, number: int, day: dt.date) -> dict[str, str]:
    region = _pick(chance, REGION_WEIGHTS)
    product = _pick(chance, {name: weight for name, (_, _, weight) in PRODUCTS.items()})
    segment = _pick(chance, SEGMENTS)
    category, list_price, _ = PRODUCTS[product]
    units = max(1, round(chance.lognormvariate(1.5 if segment == "Enterprise" else 0.9, 0.6)))
    price = Decimal(list_price) * (Decimal("1.03") if day.year == 2025 else 1)
    price = price.quantize(Decimal("0.01"))
    discount = Decimal(chance.choice(("0.00", "0.00", "0.00", "0.05", "0.10", "0.15")))
    units = _flawed_units(number, units)
    revenue = (units * price * (1 - discount)).quantize(Decimal("0.01"))
    return {
        "order_id": f"SO-{number + 10_000}",
        "date": day.isoformat(),
        "region": "" if chance.random() < 0.012 else region,
        "country": _pick(chance, dict(REGIONS[region])),
        "product": product,
        "category": category,
        "segment": segment,
        "sales_rep": chance.choice(REPS[region]),
        "units": str(units),
        "unit_price": "" if chance.random() < 0.008 else str(price),
        "discount": "" if chance.random() < 0.03 else str(discount),
        "revenue": str(revenue),
    }


def _flawed_units(number: int, units: int) -> int:
    """One order of a hundred times its size, and three returns."""
    if number == 1_236:
        return units * 100
    return -units if number in (777, 1_901, 2_650) else units


def _pick(chance: random.Random, weights: dict[str, int]) -> str:
    return chance.choices(list(weights), weights=list(weights.values()))[0]


def write(path: Path) -> None:
    """Write the file. One order in the middle is entered twice."""
    rows = list(orders(random.Random(SEED)))  # noqa: S311 - made-up data, no secret
    rows.insert(1_500, rows[1_499])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    write(Path(__file__).with_name("sales.csv"))
