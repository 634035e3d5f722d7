"""Every figure in the reports on the example file, against a computation of its own."""

from __future__ import annotations

import re

import pytest

from tests.workflows.engine import sales
from tests.workflows.engine.offline_team import Room
from tests.workflows.engine.sales import Cells, Row
from workflows.engine.offline.report import MADE_BY
from workflows.engine.tools import markdown


class Report:
    """A report from which what has been checked is crossed out."""

    def __init__(self, text: str) -> None:
        self.left = text

    def table(self, title: str) -> dict[str, tuple[str, ...]]:
        """Take the first table after `title`: its rows by their first cell."""
        head, found, rest = self.left.partition(f"{title}\n\n|")
        assert found, f"no table under {title!r} in:\n{self.left}"
        body, _, after = f"|{rest}".partition("\n\n")
        table = markdown.parse(body)
        assert table is not None
        self.left = f"{head}\n{after}"
        return {row[0]: row[1:] for row in table.rows}

    def line(self, pattern: str) -> tuple[str, ...]:
        """Take the line that fits; `#` stands for a figure, `~` for words."""
        shape = re.escape(pattern).replace(r"\#", r"([-+]?[\d,.]*\d)").replace(r"\~", r"(.+?)")
        found = re.search(rf"^(?:- )?{shape}$", self.left, re.M)
        assert found, f"no line {pattern!r} in:\n{self.left}"
        self.left = self.left[: found.start()] + self.left[found.end() :]
        return found.groups()


def is_shown(cell: str, truth: float | None) -> bool:
    """Whether the cell is the true figure, rounded to the places that it shows."""
    if truth is None or cell == "":
        return truth is None and cell == ""
    shown = cell.removesuffix(" %").replace(",", "")
    places = len(shown.partition(".")[2])
    return abs(float(shown) - truth) <= 0.5 * 10**-places + 1e-6


def assert_rows(shown: dict[str, tuple[str, ...]], truth: Cells) -> None:
    assert shown.keys() == truth.keys()
    wrong = {
        name: (cells, truth[name])
        for name, cells in shown.items()
        if not all(map(is_shown, cells, truth[name])) or len(cells) != len(truth[name])
    }
    assert wrong == {}


def assert_figures(shown: tuple[str, ...], *truth: float | str) -> None:
    for cell, expected in zip(shown, truth, strict=True):
        assert cell == expected if isinstance(expected, str) else is_shown(cell, expected)


def check(text: str, rows: list[Row], *, scope: str, dimensions: tuple[str, str]) -> Report:
    """Compare every figure but those of the scope line, and return the report without them."""
    report = Report(text)
    summed, months, years = sales.total(rows), sales.over_time(rows, 7), sales.over_time(rows, 4)
    totals, trend = sales.totals(rows), sales.trend(rows)
    outliers, negative, gaps = sales.far_outliers(rows), sales.below_zero(rows), sales.gaps(rows)

    assert_rows(report.table(f"## Totals{scope}"), totals)
    for column in dimensions:
        groups = sales.by(rows, column)
        assert_rows(report.table(f"## Revenue by {column}{scope}"), groups)
        named = {name: cells for name, cells in groups.items() if name != "(missing)"}
        first = max(named, key=lambda name: named[name][1] or 0)
        last = min(named, key=lambda name: named[name][1] or 0)
        said = report.line(f"By {column}, ~ leads with # (# % of the total); ~ is last with #.")
        assert_figures(said, first, *named[first][1:3], last, named[last][1])  # type: ignore[arg-type]
    assert_rows(report.table(f"## Revenue by month{scope}"), months)
    assert_rows(report.table(f"## Revenue by year{scope}"), years)

    shown = report.table(f"## Trend of revenue{scope}")
    assert shown.keys() == trend.keys()
    for name, (when, figure) in trend.items():
        assert_figures(shown[name], when, figure)
    said = report.line("The best month is ~ with #; the weakest month is ~ with #.")
    assert_figures(said, *trend["best month"], *trend["weakest month"])
    said = report.line("A straight line through the months changes by # a month.")
    assert_figures(said, trend["trend per month"][1])
    said = report.line("2025 gives #, # % against 2024 (#).")
    assert_figures(said, years["2025"][1], years["2025"][2], years["2024"][1])  # type: ignore[arg-type]
    said = report.line("Revenue: # in total; the mean per row is #, the median #.")
    assert_figures(said, summed, *totals["revenue"][2:4])  # type: ignore[arg-type]

    check_outliers(report, outliers, negative, scope)
    check_quality(report, rows, gaps)
    return report


def check_outliers(
    report: Report, outliers: dict[str, tuple[float, float]], negative: list[float], scope: str
) -> None:
    if outliers:
        shown = report.table(f"## Far outliers in revenue{scope}")
        assert shown.keys() == outliers.keys()
        for order, figures in outliers.items():
            assert_figures(shown[order][-2:], *figures)
            (row,) = sales.load(order_id=order)
            assert shown[order][:3] == (row["date"], row["region"], row["product"])
        far = sum(revenue for revenue, _ in outliers.values())
        sums: Cells = {
            "far outliers": [len(outliers), far],
            "below zero": [len(negative), sum(negative)],
        }
        assert_rows(report.table(f"## What the outliers in revenue add up to{scope}"), sums)
        assert len(outliers) == 1
        assert_figures(report.line("1 row is a far outlier in revenue, with # in sum."), far)
    if negative:
        said = report.line("# ~ below zero in revenue, with # in sum.")
        assert_figures((said[0], said[2]), len(negative), sum(negative))
    report.line(
        "A row counts as a far outlier when the logarithm of the figure lies more than 5 robust "
        "standard deviations from the median. “Distance” counts them."
    )


def check_quality(report: Report, rows: list[Row], gaps: list[tuple[str, str, int]]) -> None:
    missing = sales.missing(rows)
    shown = report.table("## Data quality")
    none = {name: cells for name, cells in shown.items() if name in missing}
    assert_rows(none, missing)
    worst = max(missing, key=lambda name: missing[name][0] or 0)
    said = report.line("Missing values are most frequent in ~: # rows (# %).")
    assert_figures(said, worst, *missing[worst])  # type: ignore[arg-type]

    if repeated := sales.repeated(rows):
        said = report.line("# row of # repeats another.")
        assert_figures(said, repeated, len(rows))
    if gaps:
        shown = report.table("Times without any row, longest first:")
        assert [(last, *cells) for last, cells in shown.items()] == [
            (last, after, str(days)) for last, after, days in gaps
        ]
        said = report.line("Between ~ and ~ there is no row for # days.")
        assert said == (gaps[0][0], gaps[0][1], str(gaps[0][2]))


def assert_nothing_unchecked(report: Report) -> None:
    assert not re.search(r"\d", report.left), report.left


async def test_every_figure_on_the_sales_data_is_right() -> None:
    outcome = await Room(sales.FILE).run("Analyze sales data")

    rows = sales.load()
    report = check(outcome.answer, rows, scope="", dimensions=("region", "product"))
    said = report.line("**Scope**: all # rows of sales, date from ~ to ~.")
    assert_figures(said, len(rows), *sales.period(rows))
    assert_nothing_unchecked(report)


async def test_the_sales_data_take_eight_rounds_and_every_agent() -> None:
    outcome = await Room(sales.FILE).run("Analyze sales data")

    assert outcome.speakers == ["ada", "bo", "bo", "bo", "bo", "bo", "cy", "cy"]
    assert outcome.answer.startswith(MADE_BY)


@pytest.mark.parametrize("mode", ["steer", "replan"])
async def test_every_figure_of_a_fork_on_emea_is_right(mode: str) -> None:
    room = Room(sales.FILE)
    parent = await room.run("Analyze sales data")

    outcome = await room.fork(
        parent.after_round(3),
        "Continue the analysis, focus on EMEA",
        mode=mode,  # type: ignore[arg-type]
    )

    rows, everything = sales.load(region="EMEA"), sales.load()
    report = check(outcome.answer, rows, scope=", region = EMEA", dimensions=("product", "country"))
    said = report.line(
        "**Scope**: # of # rows of sales, those with region = EMEA, date from ~ to ~."
    )
    assert_figures(said, len(rows), len(everything), *sales.period(rows))
    said = report.line("That is # % of the # of all rows.")
    whole = sales.total(everything)
    assert_figures(said, 100 * sales.total(rows) / whole, whole)
    assert_nothing_unchecked(report)
    assert outcome.rounds <= 8


async def test_every_figure_of_a_fork_of_a_fork_is_right() -> None:
    room = Room(sales.FILE, max_rounds=30)
    parent = await room.run("Analyze sales data")
    child = await room.fork(parent.after_round(3), "Continue the analysis, focus on EMEA")

    outcome = await room.fork(child.after_round(3), "now only the Orbit Chair")

    rows = sales.load(region="EMEA", product="Orbit Chair")
    words = "region = EMEA and product = Orbit Chair"
    (line,) = re.findall(r"^\*\*Scope\*\*: .*$", outcome.answer, re.M)
    first, last = sales.period(rows)
    assert line == (
        f"**Scope**: {len(rows)} of 3,001 rows of sales, those with {words}, "
        f"date from {first} to {last}."
    )
    report = Report(outcome.answer)
    assert_rows(report.table(f"## Totals, {words}"), sales.totals(rows))
    assert_rows(report.table(f"## Revenue by country, {words}"), sales.by(rows, "country"))
    assert_rows(report.table(f"## Revenue by month, {words}"), sales.over_time(rows, 7))
