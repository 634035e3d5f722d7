"""The steps of an analysis, each with the exact query, program or search that takes it."""

# ruff: noqa: S608 - every name in a query went through `quoted`, every value through `literal`

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflows.reader import LINES_TABLE, literal, quoted

from .conversation import Block
from .data import MAX_GROUPS, Column, Focus, TableProfile, unlisted

FAR = 5
"""Robust standard deviations from the median beyond which a value counts as an outlier."""
MAX_OUTLIERS = 10
MAX_GAPS = 5
MAX_MEASURES = 6
MAX_OTHER_TABLES = 3
MAX_WORDS = 12
SMALL_TABLE_ROWS = 10
_DISTANCE = "distance_from_median"

_STOP_WORDS = frozenset(
    """
    a about above after again all also am an analyse analysis analyze and any are as at
    attached be because been before being below between both but by can compare continue could data
    did do does doing down during each explain few file files find focus for from further
    give had has have having he her here hers him his how i if in instead into is it its
    itself just let like list look make me more most my new no nor not now of off on once
    one only or other our out over own please read report same say she should show so some
    such summarise summarize summary task tell than that the their them then there these
    they this those through to too under until up us use using very was we were what when
    where which while who whom why will with would write you your
    """.split()  # noqa: SIM905 - 170 quoted words would fill a page
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of one agent. `name` is what the report looks it up by."""

    name: str
    why: str
    blocks: tuple[Block, ...]
    prefers_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an analysis is about: a table, the rows in focus, the figure to follow."""

    table: TableProfile
    focus: Focus

    @property
    def measure(self) -> Column | None:
        """The figure to follow; None when rows are all there is to count."""
        named = self.focus.first(self.table.measures)
        if named and named[0].name in self.focus.columns:
            return named[0]
        return next((column for column in named if not column.is_averaged), next(iter(named), None))

    @property
    def dimensions(self) -> list[Column]:
        """At most two, without those that the focus has settled already."""
        settled = {*self.focus.filters, self.measure.name if self.measure else ""}
        free = [column for column in self.table.dimensions if column.name not in settled]
        return self.focus.first(free)[:2]

    @property
    def source(self) -> str:
        return f"FROM {quoted(self.table.name)}{self.focus.where}"

    @property
    def scope(self) -> str:
        """A suffix for titles: which rows."""
        return f", {self.focus.words}" if self.focus.filters else ""

    @property
    def what(self) -> str:
        return self.measure.label if self.measure else "rows"

    def titled(self, text: str) -> str:
        """A heading without signs that would end it early."""
        return re.sub(r"[\n*`]", " ", f"{text[0].upper()}{text[1:]}{self.scope}").rstrip(". ")


def profile() -> Step:
    return Step(
        name="profile",
        why="Nothing can be computed before we know the columns, their gaps and their values.",
        blocks=(_call("Columns of the tables", "list_tables"),),
    )


def lookup(table: TableProfile, instruction: str) -> Step | None:
    """Search all text columns for what the instruction names; None when that is known already."""
    columns, terms = unlisted(table), _phrases(instruction)
    if not columns or not terms:
        return None
    wanted = ", ".join(literal(term) for term in terms)
    parts = [
        f"SELECT {literal(c.name)} AS found_in, {c.sql} AS found_value, count(*) AS rows\n"
        f"FROM {quoted(table.name)}\nWHERE lower({c.sql}) IN ({wanted})\nGROUP BY 2"
        for c in columns
    ]
    code = "\nUNION ALL\n".join(parts) + "\nORDER BY 3 DESC, 1, 2\nLIMIT 20"
    return Step(
        name="lookup",
        why="The instruction names something that the list of columns does not show.",
        blocks=(Block(title="Values that the instruction names", kind="sql", code=code),),
    )


def of_table(subject: Subject) -> list[Step]:
    """The steps for one table, in their order."""
    if subject.table.rows <= SMALL_TABLE_ROWS:
        return [totals(subject), listing(subject), quality(subject)]
    steps = [totals(subject), *(by_group(subject, c) for c in subject.dimensions)]
    if len(steps) == 1 and not subject.table.measures:
        steps.append(listing(subject))  # nothing to group and nothing to add up
    if subject.table.date:
        steps += [over_time(subject), trend(subject)]
    if subject.measure:
        steps.append(outliers(subject))
    return [*steps, quality(subject)]


def totals(subject: Subject) -> Step:
    blocks = [Block(title=subject.titled("Rows and period"), kind="sql", code=_scope_sql(subject))]
    if subject.table.measures:
        title = subject.titled("Totals")
        blocks.append(Block(title=title, kind="sql", code=_totals_sql(subject)))
    return Step(
        name="totals",
        why="Every later figure is read against these.",
        blocks=tuple(blocks),
    )


def listing(subject: Subject) -> Step:
    code = f"SELECT *\n{subject.source}\nLIMIT {SMALL_TABLE_ROWS}"
    title = subject.titled("the first rows")
    return Step(
        name="listing",
        why="These rows say more than any sum of them.",
        blocks=(Block(title=title, kind="sql", code=code),),
    )


def by_group(subject: Subject, column: Column) -> Step:
    measure = subject.measure
    if measure is None:
        figures = "round(100.0 * count(*) / sum(count(*)) OVER (), 1) AS share_pct"
        order = 2
    elif measure.is_averaged:
        figures = (
            f"{_rounded(f'avg({measure.expression})', _digits(measure))} AS mean,\n"
            f"  {_rounded(f'median({measure.expression})', _digits(measure))} AS median"
        )
        order = 3
    else:
        total = f"sum({measure.expression})"
        figures = (
            f"{_sum(measure)} AS total,\n"
            f"  round(100.0 * {total} / nullif(sum({total}) OVER (), 0), 1) AS share_pct,\n"
            f"  {_rounded(f'avg({measure.expression})', _digits(measure))} AS mean"
        )
        order = 3
    code = (
        f"SELECT {column.sql}, count(*) AS rows,\n  {figures}\n{subject.source}\n"
        f"GROUP BY 1\nORDER BY {order} DESC NULLS LAST, 1 NULLS LAST\nLIMIT {MAX_GROUPS}"
    )
    title = subject.titled(f"{subject.what} by {column.label}")
    return Step(
        name=f"by:{column.name}",
        why=f"Compare the values of {column.label} with each other.",
        blocks=(Block(title=title, kind="sql", code=code),),
    )


def over_time(subject: Subject) -> Step:
    unit, code = _period(subject.table.date)
    title = subject.titled(f"{subject.what} by {unit}")
    blocks = [Block(title=title, kind="sql", code=_periods_sql(subject, code))]
    if unit == "month":
        title = subject.titled(f"{subject.what} by year")
        blocks.append(Block(title=title, kind="sql", code=_periods_sql(subject, "%Y")))
    return Step(
        name="time",
        why=f"See how it went from {unit} to {unit}.",
        blocks=tuple(blocks),
    )


def trend(subject: Subject) -> Step:
    """A straight line through the periods, in Python: the database has seen to the sums."""
    unit, code = _period(subject.table.date)
    digits = _digits(subject.measure)
    program = f"""\
rows = query({_series_sql(subject, code)!r})
points = [(row["period"], float(row["figure"])) for row in rows if row["figure"] is not None]
values = [value for _, value in points]
n = len(values)
print("| measure | period | figure |")
print("| --- | --- | ---: |")
if n:
    mean = sum(values) / n
    best = max(points, key=lambda point: point[1])
    worst = min(points, key=lambda point: point[1])
    print(f"| mean per {unit} | {{n}} {unit}s | {{mean:.{digits}f}} |")
    print(f"| best {unit} | {{best[0]}} | {{best[1]:.{digits}f}} |")
    print(f"| weakest {unit} | {{worst[0]}} | {{worst[1]:.{digits}f}} |")
if n > 2:
    middle = (n - 1) / 2
    spread = sum((x - middle) ** 2 for x in range(n))
    slope = sum((x - middle) * value for x, value in enumerate(values)) / spread
    print(f"| trend per {unit} | straight line | {{slope:+.{digits}f}} |")"""
    return Step(
        name="trend",
        why=f"Tell the {unit}s apart, and a lasting change from their ups and downs.",
        blocks=(
            Block(
                title=subject.titled(f"trend of {subject.what}"),
                kind="python",
                code=program,
            ),
        ),
    )


def outliers(subject: Subject) -> Step:
    return Step(
        name="outliers",
        why="A few wrong or rare rows can carry a whole total.",
        blocks=(
            Block(
                title=subject.titled(f"far outliers in {subject.what}"),
                kind="sql",
                code=_outliers_sql(subject),
            ),
            Block(
                title=subject.titled(f"what the outliers in {subject.what} add up to"),
                kind="sql",
                code=_outlier_sums_sql(subject),
            ),
        ),
        prefers_last=True,
    )


def quality(subject: Subject) -> Step:
    blocks = [
        Block(title=subject.titled("missing values"), kind="sql", code=_missing_sql(subject)),
        Block(title=subject.titled("repeated rows"), kind="sql", code=_repeated_sql(subject)),
    ]
    if subject.table.date:
        title = subject.titled("longest times without a row")
        blocks.append(Block(title=title, kind="sql", code=_gaps_sql(subject)))
    return Step(
        name="quality",
        why="The reader must know what the figures do not cover.",
        blocks=tuple(blocks),
        prefers_last=True,
    )


def of_other_tables(tables: Sequence[TableProfile]) -> list[Step]:
    """One step for the tables that are not the subject."""
    subjects = [Subject(table=table, focus=Focus()) for table in tables[:MAX_OTHER_TABLES]]
    blocks = tuple(
        Block(title=f"Totals of table {subject.table.name}", kind="sql", code=_totals_sql(subject))
        for subject in subjects
        if subject.table.measures
    )
    return [Step(name="others", why="They are attached too.", blocks=blocks)] if blocks else []


def of_texts(names: Sequence[str], task: str, instructions: Iterable[str]) -> list[Step]:
    """The steps for attached texts."""
    wanted = key_words(" ".join((task, *instructions)))
    steps = [
        Step(
            name="outline",
            why="See how the texts are built and what they speak of most.",
            blocks=(
                Block(title="Headings", kind="sql", code=_headings_sql()),
                Block(title="Frequent words", kind="sql", code=_frequent_sql()),
            ),
        )
    ]
    if wanted:
        title = f"Lines with the words {', '.join(wanted)}"
        search = _call(title, "search_text", words=" ".join(wanted))
        steps.append(Step(name="search", why="These are the words of the task.", blocks=(search,)))
    openings = [
        _call(f"Beginning of {name}", "read_text", name=name, start_line=1, lines=20)
        for name in names[:3]
    ]
    why = "The first lines tell what a text is."
    return [*steps, Step(name="openings", why=why, blocks=tuple(openings))]


def key_words(text: str) -> list[str]:
    """The words of a text that say what it is about, each once."""
    found = re.findall(r"[^\W_]{2,}", text.lower())
    return list(dict.fromkeys(word for word in found if word not in _STOP_WORDS))[:MAX_WORDS]


def _phrases(instruction: str) -> list[str]:
    """Runs of one to four words that may be a value, in lower case."""
    parts = re.findall(r"[\w.&'-]+", instruction.lower())
    runs = (
        parts[start : start + length] for length in range(4, 0, -1) for start in range(len(parts))
    )
    kept = (" ".join(run) for run in runs if any(word not in _STOP_WORDS for word in run))
    return list(dict.fromkeys(phrase.strip(".'-") for phrase in kept))[:60]


def _call(title: str, tool: str, **arguments: str | int) -> Block:
    code = json.dumps({"tool": tool, **arguments}, ensure_ascii=False)
    return Block(title=title, kind="json", code=code)


# --- SQL -----------------------------------------------------------------------------------------


def _scope_sql(subject: Subject) -> str:
    date = subject.table.date
    if date is None:
        return f"SELECT count(*) AS rows\n{subject.source}"
    day = f"CAST({date.sql} AS DATE)"
    return (
        f"SELECT count(*) AS rows, min({day}) AS first_day, max({day}) AS last_day,\n"
        f"  count(DISTINCT {day}) AS days_with_rows\n{subject.source}"
    )


def _totals_sql(subject: Subject) -> str:
    parts = []
    for column in subject.focus.first(subject.table.measures)[:MAX_MEASURES]:
        total = "CAST(NULL AS DOUBLE)" if column.is_averaged else _sum(column)
        value, digits = column.expression, _digits(column)
        parts.append(
            f"SELECT {literal(column.name)} AS measure, count({value}) AS with_value,\n"
            f"  {total} AS total, {_rounded(f'avg({value})', digits)} AS mean,\n"
            f"  {_rounded(f'median({value})', digits)} AS median,\n"
            f"  min({value}) AS lowest, max({value}) AS highest\n"
            f"{subject.source}"
        )
    return "\nUNION ALL\n".join(parts)


def _figure(subject: Subject) -> str:
    measure = subject.measure
    if measure is None:
        return "count(*)"
    if measure.is_averaged:
        return _rounded(f"avg({measure.expression})", _digits(measure))
    return _sum(measure)


def _series_sql(subject: Subject, code: str) -> str:
    date = subject.table.date
    assert date is not None  # noqa: S101 - there is no series without one
    condition = f"{subject.focus.where} AND" if subject.focus.filters else "\nWHERE"
    return (
        f"SELECT strftime({date.sql}, {literal(code)}) AS period, count(*) AS rows, "
        f"{_figure(subject)} AS figure\n"
        f"FROM {quoted(subject.table.name)}{condition} {date.sql} IS NOT NULL\n"
        f"GROUP BY 1\nORDER BY 1"
    )


def _periods_sql(subject: Subject, code: str) -> str:
    """Each period with its change against the one before it in the table."""
    name = "mean" if subject.measure and subject.measure.is_averaged else "total"
    before = "lag(figure) OVER (ORDER BY period)"
    return (
        f"WITH series AS (\n{_series_sql(subject, code)}\n)\n"
        f"SELECT period, rows, figure AS {name},\n"
        f"  CASE WHEN {before} > 0 THEN round(100.0 * (figure - {before}) / {before}, 1) END "
        f"AS change_pct\nFROM series\nORDER BY period"
    )


def _period(date: Column | None) -> tuple[str, str]:
    """A unit that gives between a few and some forty periods, and how to write one."""
    assert date is not None  # noqa: S101 - asked only for a table with a date
    years = int(date.high[:4]) - int(date.low[:4])
    if years > 4:
        return "year", "%Y"
    if date.low[:7] == date.high[:7]:
        return "day", "%Y-%m-%d"
    return "month", "%Y-%m"


def _scored(subject: Subject) -> str:
    """Rows with the distance of their figure from the median, in robust standard deviations.

    1.4826 times the median absolute deviation estimates the standard deviation (Iglewicz and
    Hoaglin, 1993). Figures that are mostly positive and spread over orders of magnitude are taken
    by their logarithm, as incomes and order values are.
    """
    measure = subject.measure
    assert measure is not None  # noqa: S101 - asked only for a table with a measure
    value = f"ln({measure.expression})" if by_logarithm(measure) else measure.expression
    condition = f"{measure.sql} > 0" if by_logarithm(measure) else f"{measure.sql} IS NOT NULL"
    joined = f"{subject.focus.where} AND" if subject.focus.filters else "\nWHERE"
    return (
        f"WITH middle AS (\n"
        f"  SELECT median({value}) AS _centre, 1.4826 * mad({value}) AS _spread\n"
        f"  FROM {quoted(subject.table.name)}{joined} {condition}\n"
        f"), scored AS (\n"
        f"  SELECT *, CASE WHEN {condition} AND _spread > 0 "
        f"THEN round(({value} - _centre) / _spread, 1) END AS {_DISTANCE}\n"
        f"  FROM {quoted(subject.table.name)}, middle{subject.focus.where}\n)"
    )


def by_logarithm(measure: Column) -> bool:
    """Whether distances are taken between logarithms: not for figures that are often negative."""
    low, high = float(measure.low), float(measure.high)
    return high > 0 and -low < high / 4 and not measure.is_averaged


def _outliers_sql(subject: Subject) -> str:
    table, measure = subject.table, subject.measure
    assert measure is not None  # noqa: S101 - asked only for a table with a measure
    shown = [table.identifier, table.date, *subject.table.dimensions[:2], measure]
    columns = ", ".join(dict.fromkeys(column.sql for column in shown if column))
    return (
        f"{_scored(subject)}\nSELECT {columns}, {_DISTANCE}\nFROM scored\n"
        f"WHERE abs({_DISTANCE}) > {FAR}\n"
        f"ORDER BY abs({_DISTANCE}) DESC, {measure.sql} DESC, 1\nLIMIT {MAX_OUTLIERS}"
    )


def _outlier_sums_sql(subject: Subject) -> str:
    """Far outliers, and what lies below zero where that is not usual."""
    measure = subject.measure
    assert measure is not None  # noqa: S101 - asked only for a table with a measure
    kinds = {"far outliers": f"abs({_DISTANCE}) > {FAR}"}
    if by_logarithm(measure):
        kinds["below zero"] = f"{measure.sql} < 0"
    parts = [
        f"SELECT {literal(kind)} AS kind, count(*) FILTER ({condition}) AS rows,\n"
        f"  {_sum(measure, condition)} AS total\nFROM scored"
        for kind, condition in kinds.items()
    ]
    return f"{_scored(subject)}\n" + "\nUNION ALL\n".join(parts)


def _missing_sql(subject: Subject) -> str:
    columns = [column for column in subject.table.columns if column.missing]
    if not columns:
        return "SELECT 'any' AS in_column, 0 AS missing, 0.0 AS share_pct"
    parts = [
        f"SELECT {literal(c.name)} AS in_column, count(*) - count({c.sql}) AS missing,\n"
        f"  round(100.0 * (count(*) - count({c.sql})) / nullif(count(*), 0), 1) AS share_pct\n"
        f"{subject.source}"
        for c in columns
    ]
    return "\nUNION ALL\n".join(parts) + "\nORDER BY 2 DESC, 1"


def _repeated_sql(subject: Subject) -> str:
    return (
        "SELECT count(*) AS rows, (\n"
        f"  SELECT count(*) FROM (SELECT DISTINCT *\n{subject.source})\n"
        f") AS different_rows\n{subject.source}"
    )


def _gaps_sql(subject: Subject) -> str:
    """Times without a row that are long for this table: over three days and four usual steps."""
    date = subject.table.date
    assert date is not None  # noqa: S101 - asked only for a table with a date
    condition = f"{subject.focus.where} AND" if subject.focus.filters else "\nWHERE"
    return (
        f"WITH days AS (\n  SELECT DISTINCT CAST({date.sql} AS DATE) AS seen\n"
        f"  FROM {quoted(subject.table.name)}{condition} {date.sql} IS NOT NULL\n), steps AS (\n"
        f"  SELECT seen AS last_day, lead(seen) OVER (ORDER BY seen) AS next_day FROM days\n)\n"
        f"SELECT last_day, next_day, next_day - last_day - 1 AS days_without_rows\nFROM steps\n"
        f"WHERE next_day - last_day > greatest(3, 4 * "
        f"(SELECT median(next_day - last_day) FROM steps))\n"
        f"ORDER BY 3 DESC, 1\nLIMIT {MAX_GAPS}"
    )


def _headings_sql() -> str:
    """Markdown headings, numbered headings, and short lines in capitals."""
    return (
        f"SELECT document, line, trim(text) AS heading\nFROM {LINES_TABLE}\n"
        r"WHERE regexp_matches(text, '^#{1,6}\s+\S')"
        "\n"
        r"  OR (length(text) < 80 AND regexp_matches(text, '^\d+(\.\d+)*\.?\s+[A-ZÀ-Þ]'))"
        "\n"
        r"  OR (length(text) < 80 AND regexp_full_match(text, '[A-ZÀ-Þ][A-ZÀ-Þ\d ,:&''-]{3,}'))"
        "\nORDER BY document, line\nLIMIT 60"
    )


def _frequent_sql() -> str:
    ignored = ", ".join(literal(word) for word in sorted(_STOP_WORDS))
    return (
        "WITH words AS (\n"
        r"  SELECT document, unnest(regexp_extract_all(lower(text), '[^\W\d_]{4,}')) AS word"
        f"\n  FROM {LINES_TABLE}\n)\n"
        f"SELECT word, count(*) AS times, count(DISTINCT document) AS documents\nFROM words\n"
        f"WHERE word NOT IN ({ignored})\n"
        f"GROUP BY 1\nORDER BY 2 DESC, 1\nLIMIT 15"
    )


def _sum(column: Column, condition: str = "") -> str:
    """Whole numbers add up exactly; others are rounded to what is worth showing."""
    total = f"sum({column.expression})" + (f" FILTER ({condition})" if condition else "")
    return total if column.is_whole else f"round({total}, {column.digits})"


def _digits(column: Column | None) -> int:
    """Of a mean: whole numbers have means with two places."""
    return max(column.digits, 2) if column else 2


def _rounded(expression: str, digits: int) -> str:
    return f"round({expression}, {digits})"
