"""The report: what was computed, set out for a reader; every figure comes out of a result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

from workflows.engine.tools import markdown

from . import steps
from .analysis import Analysis
from .conversation import Block
from .data import MAX_GROUPS, Column, Focus, is_identifier, number
from .steps import Step, Subject

MADE_BY = "_Made by the built-in rules, without a language model._"
MAX_QUOTES = 12
QUOTE_CHARACTERS = 240
_MISSING = "(missing)"

_NAMES = {
    "rows": "Rows",
    "total": "Total",
    "mean": "Mean",
    "median": "Median",
    "share_pct": "Share",
    "change_pct": "Change",
    "period": "Period",
    "measure": "Measure",
    "figure": "Figure",
    "with_value": "With a value",
    "lowest": "Lowest",
    "highest": "Highest",
    "in_column": "Column",
    "missing": "Missing",
    "last_day": "Last day before",
    "next_day": "First day after",
    "days_without_rows": "Days without rows",
    "distance_from_median": "Distance",
    "kind": "Kind",
    "document": "Text",
    "line": "Line",
    "heading": "Heading",
    "word": "Word",
    "times": "Times",
    "documents": "Texts",
}
_PLAIN = {"period", "line", "last_day", "next_day", "first_day"}
"""Columns whose cells are shown as they are."""


def write(analysis: Analysis) -> str:
    """The final answer in Markdown."""
    if not analysis.conversation.files:
        return _without_files(analysis.conversation.task)
    sections = [MADE_BY]
    if analysis.subject:
        sections += _on_table(analysis, analysis.subject)
    elif analysis.tables:
        sections.append(_nothing_known(analysis))
    if analysis.conversation.texts:
        sections += _on_texts(analysis)
    sections += _what_failed(analysis)
    return "\n\n".join(section for section in sections if section)


def _without_files(task: str) -> str:
    return (
        f"{MADE_BY}\n\nNo file is attached, so there is nothing to compute with, and without a "
        "language model I can't answer from knowledge or write freely about the task:\n\n"
        f"> {_one_line(task)}\n\n"
        "With files attached I can do this:\n\n"
        "- tables (CSV, TSV, JSON, Parquet, Excel): totals, comparisons by group, changes over "
        "time, outliers, gaps and repeated rows, for all rows or for those that you name\n"
        "- texts (plain text, Markdown, PDF): headings, frequent words, and the lines that hold "
        "the words of your task\n\n"
        "Attach a file and start again, or configure a language model for everything else."
    )


def _nothing_known(analysis: Analysis) -> str:
    return (
        f"The columns of {', '.join(analysis.tables)} could not be listed, so nothing was "
        "computed. The team needs an agent with the tools list_tables and query_tables."
    )


def _what_failed(analysis: Analysis) -> list[str]:
    if not analysis.failures:
        return []
    lines = [f"- {block.title}: {reason}" for block, reason in analysis.failures]
    return ["\n".join(("## What could not be computed\n", *lines))]


# --- tables --------------------------------------------------------------------------------------


def _on_table(analysis: Analysis, subject: Subject) -> list[str]:
    done = {step.name: step for step in steps.of_table(subject)}
    title = f"# {' '.join(subject.table.name.split('_')).capitalize()}"
    focus = f": {subject.focus.words}" if subject.focus.filters else ""
    head = [f"{title}{focus}", _scope(analysis, subject, done["totals"]), _unknown(subject.focus)]
    if analysis.is_empty:
        return [*head, "No row meets these conditions together, so there is nothing to compute."]
    findings = _findings(analysis, subject, done)
    body = [_section(analysis, step, subject) for name, step in done.items() if name != "quality"]
    return [
        *head,
        "\n".join(("## Key findings\n", *findings)) if findings else "",
        *body,
        _quality(analysis, subject, done["quality"]),
        *_other_tables(analysis, subject),
    ]


def _scope(analysis: Analysis, subject: Subject, step: Step) -> str:
    table, focus = subject.table, subject.focus
    found = _only_row(analysis, step.blocks[0])
    if found is None:
        return f"**Scope**: table {table.name}."
    rows, period = found["rows"], ""
    if subject.table.date and found.get("first_day", markdown.NULL) != markdown.NULL:
        period = f", {subject.table.date.label} from {found['first_day']} to {found['last_day']}"
    if not focus.filters:
        if rows == "1":
            return f"**Scope**: the only row of {table.name}{period}."
        return f"**Scope**: all {_whole(rows)} rows of {table.name}{period}."
    return (
        f"**Scope**: {_whole(rows)} of {table.rows:,} rows of {table.name}, those with "
        f"{focus.words}{period}."
    )


def _unknown(focus: Focus) -> str:
    return "\n".join(
        f"The instruction “{_one_line(text)}” names no column, value or period in the data, so it "
        "did not change what was computed."
        for text in focus.unknown
    )


def _section(analysis: Analysis, step: Step, subject: Subject) -> str:
    if step.name == "outliers":
        return _outliers(analysis, step, subject)
    compares = step.name == "time" or step.name.startswith("by:")
    parts = []
    # The scope line has said what the first block of the totals holds.
    for block in step.blocks[1:] if step.name == "totals" else step.blocks:
        table = analysis.table_of(block)
        if table is None or len(table.rows) < (2 if compares else 1):
            continue
        parts.append(f"## {block.title}\n\n{_shown(table)}")
        if step.name.startswith("by:") and len(table.rows) == MAX_GROUPS:
            parts.append(f"Only the first {MAX_GROUPS} are listed.")
    return "\n\n".join(parts)


def _outliers(analysis: Analysis, step: Step, subject: Subject) -> str:
    rows, sums = step.blocks
    if subject.measure is None or not analysis.result(rows):
        return ""
    listed, summed = analysis.table_of(rows), analysis.table_of(sums)
    parts = [f"## {rows.title}", _shown(listed) if listed else "None."]
    if summed and any(count != "0" for _, count, _ in summed.rows):
        parts += [f"## {sums.title}", _shown(summed)]
    return "\n\n".join((*parts, _how_far(subject.measure)))


def _how_far(measure: Column) -> str:
    what = "the logarithm of the figure" if steps.by_logarithm(measure) else "the figure"
    return (
        f"A row counts as a far outlier when {what} lies more than {steps.FAR} robust standard "
        "deviations from the median. “Distance” counts them."
    )


def _quality(analysis: Analysis, subject: Subject, step: Step) -> str:
    missing, repeated, *gaps = (analysis.table_of(block) for block in step.blocks)
    parts = ["## Data quality"]
    if missing:
        kept = [row for row in missing.rows if row[1] != "0"]
        parts.append(
            _shown(_with_rows(missing, kept)) if kept else "No value is missing in any column."
        )
    if repeated and repeated.rows:
        parts.append(_repeated(repeated.rows[0]))
    if gaps and gaps[0] and gaps[0].rows:
        parts.append("Times without any row, longest first:\n\n" + _shown(gaps[0]))
    elif gaps and analysis.result(step.blocks[2]):
        parts.append("No unusually long time is without a row.")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _repeated(row: Sequence[str]) -> str:
    extra = Decimal(row[0]) - Decimal(row[1])
    if not extra:
        return "No row occurs twice."
    verb = "repeats" if extra == 1 else "repeat"
    return f"{_plural(extra, 'row')} of {_whole(row[0])} {verb} another."


def _other_tables(analysis: Analysis, subject: Subject) -> list[str]:
    others = [table for table in analysis.profiles if table is not subject.table]
    if not others:
        return []
    lines = [
        f"- {table.name}: {table.rows:,} rows, {len(table.columns)} columns" for table in others
    ]
    parts = ["\n".join(("## Other tables\n", *lines))]
    for step in steps.of_other_tables(others):
        for block in step.blocks:
            if table := analysis.table_of(block):
                parts.append(f"### {block.title}\n\n{_shown(table)}")
    return parts


# --- key findings --------------------------------------------------------------------------------


def _findings(analysis: Analysis, subject: Subject, done: dict[str, Step]) -> list[str]:
    found = [
        *_total_finding(analysis, subject, done["totals"]),
        *(
            line
            for name, step in done.items()
            if name.startswith("by:")
            for line in _leader(analysis.table_of(step.blocks[0]), subject)
        ),
        *(_time_findings(analysis, subject, done["trend"]) if "trend" in done else ()),
        *(_year_finding(analysis, subject, done["time"]) if "time" in done else ()),
        *(_outlier_findings(analysis, subject, done["outliers"]) if "outliers" in done else ()),
        *_gap_finding(analysis, done["quality"]),
    ]
    return [f"- {line}" for line in found]


def _total_finding(analysis: Analysis, subject: Subject, step: Step) -> Iterable[str]:
    measure = subject.measure
    if measure is None or len(step.blocks) < 2:
        return
    row = _measure_row(analysis, step.blocks[1], measure)
    if row is None:
        return
    name = measure.label.capitalize()
    if measure.is_averaged:
        yield f"{name}: {row['mean']} on average, {row['median']} in the middle."
        return
    yield (
        f"{name}: {row['total']} in total; the mean per row is {row['mean']}, "
        f"the median {row['median']}."
    )
    everything = Subject(table=subject.table, focus=Focus(columns=list(subject.focus.columns)))
    whole = steps.totals(everything).blocks[1] if subject.focus.filters else None
    if whole and (all_rows := _measure_row(analysis, whole, measure)):
        part, total = _decimal(row["total"]), _decimal(all_rows["total"])
        if part is not None and total:
            yield f"That is {100 * part / total:.1f} % of the {all_rows['total']} of all rows."


def _leader(table: markdown.Table | None, subject: Subject) -> Iterable[str]:
    """Who is first and who is last, among groups that have a name."""
    if table is None:
        return
    rows = [row for row in _formatted(table) if row[0] != _MISSING]
    if len(rows) < 2 or len(table.rows) == MAX_GROUPS:
        return
    place = 1 if subject.measure is None else 2
    first, last = rows[0], rows[-1]
    share = table.columns.index("share_pct") if "share_pct" in table.columns else None
    of_all = f" ({first[share]} of the total)" if share is not None else ""
    by = " ".join(table.columns[0].split("_"))
    yield (
        f"By {by}, {first[0]} leads with {first[place]}{of_all}; "
        f"{last[0]} is last with {last[place]}."
    )


def _time_findings(analysis: Analysis, subject: Subject, step: Step) -> Iterable[str]:
    table = analysis.table_of(step.blocks[0])
    if table is None:
        return
    rows = {row[0].partition(" ")[0]: row for row in _formatted(table)}
    if "best" in rows and "weakest" in rows:
        yield (
            f"The {rows['best'][0]} is {rows['best'][1]} with {rows['best'][2]}; "
            f"the {rows['weakest'][0]} is {rows['weakest'][1]} with {rows['weakest'][2]}."
        )
    if "trend" in rows:
        unit = rows["trend"][0].removeprefix("trend per ")
        yield f"A straight line through the {unit}s changes by {rows['trend'][2]} a {unit}."


def _year_finding(analysis: Analysis, subject: Subject, step: Step) -> Iterable[str]:
    table = analysis.table_of(step.blocks[1]) if len(step.blocks) > 1 else None
    if table is None or len(table.rows) < 2 or table.rows[-1][3] == markdown.NULL:
        return
    before, last = _formatted(table)[-2:]
    yield f"{last[0]} gives {last[2]}, {last[3]} against {before[0]} ({before[2]})."


def _outlier_findings(analysis: Analysis, subject: Subject, step: Step) -> Iterable[str]:
    table, measure = analysis.table_of(step.blocks[1]), subject.measure
    if table is None or measure is None:
        return
    for kind, rows, total in table.rows:
        if rows == "0":
            continue
        one, many = _OUTLIERS[kind]
        sums = "" if measure.is_averaged else f", with {_number(total, measure.digits)} in sum"
        verb = one if rows == "1" else many
        yield f"{_plural(Decimal(rows), 'row')} {verb} in {measure.label}{sums}."


_OUTLIERS = {
    "far outliers": ("is a far outlier", "are far outliers"),
    "below zero": ("lies below zero", "lie below zero"),
}


def _gap_finding(analysis: Analysis, step: Step) -> Iterable[str]:
    missing = analysis.table_of(step.blocks[0])
    worst = next((row for row in _formatted(missing) if row[1] != "0"), None) if missing else None
    if worst:
        rows = _plural(Decimal(worst[1].replace(",", "")), "row")
        yield f"Missing values are most frequent in {worst[0]}: {rows} ({worst[2]})."
    gaps = analysis.table_of(step.blocks[2]) if len(step.blocks) > 2 else None
    if gaps and gaps.rows:
        last, after, days = gaps.rows[0]
        yield f"Between {last} and {after} there is no row for {int(days):,} days."


# --- texts ---------------------------------------------------------------------------------------


def _on_texts(analysis: Analysis) -> list[str]:
    talk = analysis.conversation
    names = [file.name for file in talk.texts]
    found = {step.name: step for step in steps.of_texts(names, talk.task, talk.instructions)}
    outline = found["outline"].blocks
    return [
        "# Texts\n\n" + "\n".join(f"- {file.name}: {file.facts}" for file in talk.texts),
        _headings(analysis, outline[0]),
        _frequent(analysis, outline[1]),
        _quotes(analysis, found.get("search")),
        _openings(analysis, found["openings"]),
    ]


def _headings(analysis: Analysis, block: Block) -> str:
    table = analysis.table_of(block)
    if table is None or not table.rows:
        return ""
    lines = [
        f"- {_one_line(text.lstrip('# '))} ({document}, line {line})"
        for document, line, text in table.rows
    ]
    return "\n".join(("## Headings\n", *lines))


def _frequent(analysis: Analysis, block: Block) -> str:
    table = analysis.table_of(block)
    if table is None or not table.rows:
        return ""
    listed = ", ".join(f"{word} ({_whole(times)})" for word, times, _ in table.rows)
    return f"## Frequent words\n\n{listed}"


def _quotes(analysis: Analysis, step: Step | None) -> str:
    if step is None:
        return ""
    block = step.blocks[0]
    table = analysis.table_of(block)
    if table is None:
        return f"## {block.title}\n\n{analysis.result(block)}" if analysis.result(block) else ""
    lines = [
        f"> {_quote(text)}\n>\n> — {document}, line {line}"
        for document, line, text in table.rows[:MAX_QUOTES]
    ]
    return "\n\n".join((f"## {block.title}", *lines))


def _openings(analysis: Analysis, step: Step) -> str:
    parts = []
    for block in step.blocks:
        lines = re.findall(r"^\d+: (.*\S)", analysis.result(block), re.M)[:5]
        if lines:
            quoted = "\n".join(f"> {_quote(line)}" for line in lines)
            parts.append(f"## {block.title}\n\n{quoted}")
    return "\n\n".join(parts)


def _quote(text: str) -> str:
    line = _one_line(text).lstrip("# ")
    return line if len(line) <= QUOTE_CHARACTERS else f"{line[:QUOTE_CHARACTERS]}…"


# --- figures -------------------------------------------------------------------------------------


def _shown(table: markdown.Table) -> str:
    """The table for people: named columns, grouped digits, percent signs."""
    columns = [_NAMES.get(name, name) for name in table.columns]
    return markdown.table(columns, _formatted(table), numeric=table.numeric)


def _formatted(table: markdown.Table) -> list[list[str]]:
    places = [_places(table, place) for place in range(len(table.columns))]
    return [
        [
            _cell(cell, column, digits, is_figure=numeric and place > 0)
            for place, (cell, column, digits, numeric) in enumerate(
                zip(row, table.columns, places, table.numeric, strict=True)
            )
        ]
        for row in table.rows
    ]


def _places(table: markdown.Table, place: int) -> int:
    """Decimal places of a column: as many as its most exact figure has, where all are alike."""
    if table.columns[0] == "measure":
        return -1  # each row is another measure
    cells = [row[place] for row in table.rows]
    return max((len(cell.partition(".")[2]) for cell in cells if "." in cell), default=0)


def _cell(cell: str, column: str, digits: int, *, is_figure: bool) -> str:
    if cell == markdown.NULL:
        return "" if is_figure else _MISSING
    if not is_figure or column in _PLAIN or is_identifier(column):
        return cell
    if column == "share_pct":
        return f"{_number(cell, 1)} %"
    if column == "change_pct":
        return f"{Decimal(cell):+,.1f} %"
    return _number(cell, digits)


def _number(cell: str, digits: int) -> str:
    """Grouped digits; `digits` below zero keeps the places that the figure has."""
    found = number(cell)
    if found is None:
        return "" if cell == markdown.NULL else cell
    sign = "+" if cell.startswith("+") else ""
    return f"{found:{sign},f}" if digits < 0 else f"{found:{sign},.{digits}f}"


def _measure_row(analysis: Analysis, block: Block, measure: Column) -> dict[str, str] | None:
    """The formatted row of one measure in a table of totals."""
    table = analysis.table_of(block)
    for raw, row in zip(table.rows, _formatted(table), strict=True) if table else ():
        if raw[0] == measure.name:
            return dict(zip(table.columns, row, strict=True)) if table else None
    return None


def _only_row(analysis: Analysis, block: Block) -> dict[str, str] | None:
    table = analysis.table_of(block)
    return dict(zip(table.columns, table.rows[0], strict=True)) if table and table.rows else None


def _with_rows(table: markdown.Table, rows: Sequence[tuple[str, ...]]) -> markdown.Table:
    return markdown.Table(columns=table.columns, rows=tuple(rows), numeric=table.numeric)


def _decimal(shown: str) -> Decimal | None:
    return number(shown.replace(",", ""))


def _whole(cell: str) -> str:
    return _number(cell, 0)


def _plural(count: Decimal, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
