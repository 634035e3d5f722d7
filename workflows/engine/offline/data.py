"""What the profile of a table says: which columns to add up, to group by, to follow over time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property

from workflows.engine.tools import markdown
from workflows.reader import literal, quoted

MAX_GROUPS = 25
"""Groups that are still worth a line each."""

_MEASURES = (
    *("revenue", "sales", "turnover", "amount", "income", "profit", "spend", "cost", "total"),
    *("value", "price", "quantity", "qty", "units", "count", "hours", "volume"),
)
_DIMENSIONS = (
    *("region", "product", "country", "category", "segment", "channel", "department", "team"),
    *("type", "status", "customer", "brand", "group", "class", "city", "state", "name"),
)
_AVERAGED = {
    *("price", "rate", "ratio", "percent", "percentage", "pct", "discount", "score", "rating"),
    *("age", "temperature", "temp", "margin", "share", "average", "avg", "mean", "lat", "lon"),
    *("latitude", "longitude", "humidity", "pressure", "speed", "grade", "height", "weight"),
    *("celsius", "fahrenheit", "degrees", "c", "f", "ph", "index", "density", "depth"),
}
_IDENTIFIERS = {
    *("id", "uuid", "guid", "key", "no", "nr", "number", "num", "code", "zip", "zipcode"),
    *("postcode", "phone", "year", "month", "day", "hour", "week", "line", "row", "sku"),
}
_NUMBERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DOUBLE|FLOAT|DECIMAL.*")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A line of the profile. `values` are the most frequent; `lists_all` when there are no more."""

    name: str
    type: str
    missing: int
    distinct: int
    low: str
    high: str
    values: tuple[str, ...] = ()
    lists_all: bool = False

    @property
    def sql(self) -> str:
        return quoted(self.name)

    @property
    def label(self) -> str:
        """The name as it stands in a heading."""
        return shown(self.name)

    @property
    def is_number(self) -> bool:
        return bool(_NUMBERS.fullmatch(self.type))

    @property
    def is_whole(self) -> bool:
        return self.is_number and "INT" in self.type

    @property
    def is_text(self) -> bool:
        return self.type in ("VARCHAR", "BOOLEAN") or self.type.startswith("ENUM")

    @property
    def is_date(self) -> bool:
        return self.type.startswith(("DATE", "TIMESTAMP"))

    @property
    def is_averaged(self) -> bool:
        """Whether its sum says nothing, as with a price or a temperature."""
        parts = words(self.name)
        return bool(parts) and parts[-1] in _AVERAGED and parts[0] not in ("total", "gross", "net")

    @property
    def is_identifier(self) -> bool:
        return is_identifier(self.name)

    @property
    def digits(self) -> int:
        """Decimal places worth showing: 2 for what counts in tens, more for what is small."""
        if self.is_whole:
            return 0
        largest = max(abs(number(end) or Decimal(0)) for end in (self.low, self.high))
        return next(
            (digits for bound, digits in ((10, 2), (1, 3), (0.01, 4)) if largest >= bound), 8
        )

    @property
    def expression(self) -> str:
        """The column as a number that can be averaged with any other."""
        return f"CAST({self.sql} AS DOUBLE)" if self.type.startswith("DECIMAL") else self.sql


@dataclass(frozen=True, kw_only=True)
class TableProfile:
    """A table as the profile describes it."""

    name: str
    rows: int
    columns: tuple[Column, ...]

    @cached_property
    def measures(self) -> list[Column]:
        """Columns to add up or to average, the most telling one first."""
        found = [
            column
            for column in self.columns
            if column.is_number and column.distinct > 0 and not self._names_rows(column)
        ]
        return sorted(found, key=lambda c: (_rank(c, _MEASURES), c.is_averaged))

    @cached_property
    def dimensions(self) -> list[Column]:
        """Columns to group by, the most telling one first."""
        found = [column for column in self.columns if self._groups(column)]
        return sorted(found, key=lambda c: (c.missing * 2 > self.rows, _rank(c, _DIMENSIONS)))

    @cached_property
    def date(self) -> Column | None:
        """The column that tells when; None when there is none, or but one day in it."""
        found = [column for column in self.columns if column.is_date and column.low != column.high]
        return min(found, key=lambda c: c.missing, default=None)

    @cached_property
    def identifier(self) -> Column | None:
        """The column that names a row best, if one nearly does."""
        for column in self.columns:
            if self._names_rows(column) and column.distinct * 10 >= self.rows * 9:
                return column
        return None

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    def _names_rows(self, column: Column) -> bool:
        """Whether the column is an identifier by its name, or counts the rows."""
        if column.is_identifier:
            return True
        if not column.is_whole or column.distinct != self.rows or self.rows < 3:
            return False
        return int(column.high) - int(column.low) + 1 == self.rows

    def _groups(self, column: Column) -> bool:
        if column.distinct < 2 or column.distinct * 2 > max(self.rows, 4):
            return False
        if column.is_text:
            return True
        return (
            column.is_whole and column.distinct <= 12 and _rank(column, _MEASURES) == len(_MEASURES)
        )


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A condition on one column, in SQL and in words."""

    column: str
    sql: str
    words: str


@dataclass(kw_only=True)
class Focus:
    """What the user's words select: rows, and columns to look at first.

    `unknown` are instructions that name nothing in the data.
    """

    filters: dict[str, Filter] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The condition with its WHERE and a line end before it; "" for all rows."""
        conditions = [condition.sql for condition in self.filters.values()]
        return f"\nWHERE {' AND '.join(conditions)}" if conditions else ""

    @property
    def words(self) -> str:
        return " and ".join(condition.words for condition in self.filters.values())

    def first(self, columns: Sequence[Column]) -> list[Column]:
        """The columns with those named by the user before the others."""
        order = {name: place for place, name in enumerate(self.columns)}
        return sorted(columns, key=lambda column: order.get(column.name, len(order)))


def parse_profile(text: str) -> list[TableProfile]:
    """The tables in what `list_tables` gave."""
    parts = re.split(r"^### Table (\w+): ([\d,]+) rows$", text, flags=re.M)[1:]
    return [
        TableProfile(name=name, rows=int(rows.replace(",", "")), columns=_columns(body))
        for name, rows, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def words(name: str) -> list[str]:
    """`orderDate`, `Order_Date` and `order date` alike."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def shown(name: str) -> str:
    """`unit_price` as `unit price`; names that were not written for programs stay as they are."""
    return " ".join(words(name)) if re.fullmatch(r"\w+", name, re.ASCII) else name


def is_identifier(name: str) -> bool:
    """Whether a column of this name holds names of things, though they may be numbers."""
    parts = words(name)
    return bool(parts) and parts[-1] in _IDENTIFIERS


def number(cell: str) -> Decimal | None:
    """A cell's number; None for anything else."""
    try:
        found = Decimal(cell)
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def focus_of(
    table: TableProfile,
    task: str,
    instructions: Iterable[str],
    looked_up: Iterable[tuple[str, str]] = (),
) -> Focus:
    """Apply the task, then each instruction, oldest first.

    `looked_up` are (column, value) that the profile did not list. A later word on a column replaces
    an earlier one; different columns add up.
    """
    focus, pairs = Focus(), [*_listed(table), *looked_up]
    _apply(focus, table, task, [p for p in pairs if _is_explicit(p[1], task, table)])
    for instruction in instructions:
        if not _apply(focus, table, instruction, pairs):
            focus.unknown.append(instruction)
    return focus


def names_rows(table: TableProfile, instruction: str, pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether the instruction names values that are known, or a time."""
    known = [*_listed(table), *pairs]
    return bool(_value_filters(instruction, known) or _time_filter(table, instruction))


def unlisted(table: TableProfile) -> list[Column]:
    """Text columns with values that the profile did not list."""
    return [column for column in table.columns if column.is_text and not column.lists_all]


def _columns(body: str) -> tuple[Column, ...]:
    table = markdown.parse(body)
    return tuple(_column(row) for row in table.rows) if table else ()


def _column(row: Sequence[str]) -> Column:
    name, kind, missing, distinct, low, high, values = row
    listed = [json.loads(found) for found in re.findall(r'("(?:[^"\\]|\\.)*") \(\d+\)', values)]
    return Column(
        name=name,
        type=kind,
        missing=int(missing),
        distinct=int(distinct),
        low=low,
        high=high,
        values=tuple(listed),
        lists_all=len(listed) == int(distinct),
    )


def _rank(column: Column, known: Sequence[str]) -> int:
    """Where the first known word of the name stands; a plural counts."""
    parts = {part for word in words(column.name) for part in (word, word.removesuffix("s"))}
    return next((place for place, word in enumerate(known) if word in parts), len(known))


def _listed(table: TableProfile) -> list[tuple[str, str]]:
    texts = (column for column in table.columns if column.is_text and column.type != "BOOLEAN")
    return [(column.name, value) for column in texts for value in column.values]


def _is_explicit(value: str, task: str, table: TableProfile) -> bool:
    """Whether a value in the task is meant: `Analyze sales` does not ask for a department Sales."""
    return bool(re.search(_word(value), task)) and value.casefold() not in words(table.name)


def _apply(focus: Focus, table: TableProfile, text: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Change `focus` as `text` says. False when it names nothing."""
    if is_reset := _asks_for_everything(text):
        focus.filters.clear()
    found = _value_filters(text, pairs)
    if when := _time_filter(table, text):
        found.append(when)
    focus.filters.update({condition.column: condition for condition in found})
    named = [column.name for column in table.columns if _names_column(text, column)]
    focus.columns[:0] = [name for name in named if name not in focus.columns]
    return bool(found or named or is_reset)


def _asks_for_everything(text: str) -> bool:
    return bool(
        re.search(r"\b(all (the )?(rows|data|regions)|everything|whole|no filter)\b", text, re.I)
    )


def _names_column(text: str, column: Column) -> bool:
    phrase = r"[\s_-]*".join(map(re.escape, words(column.name)))
    return bool(phrase) and bool(re.search(rf"(?<!\w){phrase}(s|es)?(?!\w)", text, re.I))


def _value_filters(text: str, pairs: Iterable[tuple[str, str]]) -> list[Filter]:
    """One condition per column whose values the text names, longer values before shorter ones."""
    wanted: dict[str, list[str]] = {}
    unwanted: dict[str, list[str]] = {}
    for column, value in sorted(dict.fromkeys(pairs), key=lambda pair: -len(pair[1])):
        found = re.search(_word(value), text, 0 if len(value) < 3 else re.IGNORECASE)
        if found and value.strip():
            before = text[max(0, found.start() - 20) : found.start()]
            is_negated = re.search(
                r"\b(not|without|except|excluding|exclude|but)\s+(\w+\s+)?$", before
            )
            (unwanted if is_negated else wanted).setdefault(column, []).append(value)
            # The same word in another column, or within a longer value, is used up.
            text = f"{text[: found.start()]}\0{text[found.end() :]}"
    return [
        *(_among(column, values) for column, values in wanted.items()),
        *(_apart(column, values) for column, values in unwanted.items() if column not in wanted),
    ]


def _word(value: str) -> str:
    return rf"(?<!\w){re.escape(value)}(?!\w)"


def _among(column: str, values: Sequence[str]) -> Filter:
    listed = sorted(values)
    if len(listed) == 1:
        condition, told = f"= {literal(listed[0])}", f"= {listed[0]}"
    else:
        condition, told = f"IN ({', '.join(map(literal, listed))})", f"one of {', '.join(listed)}"
    return Filter(
        column=column, sql=f"{quoted(column)} {condition}", words=f"{shown(column)} {told}"
    )


def _apart(column: str, values: Sequence[str]) -> Filter:
    listed = sorted(values)
    return Filter(
        column=column,
        sql=f"({quoted(column)} NOT IN ({', '.join(map(literal, listed))}) "
        f"OR {quoted(column)} IS NULL)",
        words=f"{shown(column)} other than {', '.join(listed)}",
    )


def _time_filter(table: TableProfile, text: str) -> Filter | None:
    """A year, a quarter (`Q3 2024`) or a month (`2024-05`) that the table's dates reach."""
    if table.date is None:
        return None
    column = table.date
    for pattern, unit in (
        (r"\b((?:19|20)\d\d)-(0[1-9]|1[0-2])\b", "%Y-%m"),
        (r"\b((?:19|20)\d\d)\b", "%Y"),
    ):
        for found in re.finditer(pattern, text):
            period = found[0]
            if column.low[: len(period)] <= period <= column.high[: len(period)]:
                return _during(column, period, unit, text)
    return None


def _during(column: Column, period: str, unit: str, text: str) -> Filter:
    condition = f"strftime({column.sql}, '{unit}') = '{period}'"
    told = f"{column.label} in {period}"
    quarter = re.search(rf"\bQ([1-4])\W*{period}\b|\b{period}\W*Q([1-4])\b", text, re.I)
    if quarter and unit == "%Y":
        which = quarter[1] or quarter[2]
        condition += f" AND quarter({column.sql}) = {which}"
        told = f"{column.label} in quarter {which} of {period}"
    return Filter(column=column.name, sql=condition, words=told)
