"""Attached files into a database: tables as tables, texts as numbered lines.

Nothing is guessed away: a line that does not fit refuses the file and is named, never skipped.
"""

# ruff: noqa: S608 - every name in a query went through `quoted`, every value through `literal`

from __future__ import annotations

import codecs
import csv
import datetime as dt
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

import duckdb

from workflows.reader import LINES_TABLE, distinct, literal, quoted

type Connection = duckdb.DuckDBPyConnection

MAX_COLUMNS = 1_000
MAX_SHEETS = 50
MAX_CELLS = 5_000_000
MAX_UNPACKED_BYTES = 500 * 1024 * 1024
MAX_TEXT_CHARACTERS = 20_000_000
MAX_PAGES = 2_000
LINE_PIECE = 10_000
"""Characters of one row of the table of lines: a longer line takes several rows of one number."""

_NULL = "\x1aNULL"
_ENCRYPTED = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Unreadable(Exception):
    """The file is not what its name says, or is too much. The text goes on from the file's name."""


def load(connection: Connection, files: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Load every (name, path) and return a summary of each, in the same order.

    Tables that would share a name are numbered. Raises `Unreadable`, starting with the file's name.
    """
    connection.execute(f"CREATE TABLE {LINES_TABLE} (document VARCHAR, line BIGINT, text VARCHAR)")
    taken = {LINES_TABLE}
    summaries = []
    for name, path in files:
        try:
            with Path(path).open("rb") as file:
                summaries.append(_load_one(connection, name, file, taken))
        except Unreadable as error:
            raise Unreadable(f"{name} {error}") from error
        except FileNotFoundError as error:
            raise Unreadable(f"{name} is no longer stored here. Attach it again.") from error
    return summaries


def _load_one(
    connection: Connection, name: str, file: IO[bytes], taken: set[str]
) -> dict[str, Any]:
    suffix = PurePath(name).suffix.lower()
    if suffix in _TEXTS:
        return _load_text(connection, name, _TEXTS[suffix](file))
    if suffix not in _TABLES:
        raise Unreadable(f"is of a kind that can't be read. Attach one of: {', '.join(KINDS)}.")
    tables = []
    for base, create in _TABLES[suffix](connection, PurePath(name).stem, file):
        base = _identifier(connection, base)
        table = distinct(base, taken)
        create(table)
        tables.append(_summary(connection, base, table))
    return {"kind": "table", "tables": tables}


def _summary(connection: Connection, base: str, table: str) -> dict[str, Any]:
    _tidy(connection, table)
    columns = _columns(connection, table)
    if len(columns) > MAX_COLUMNS:
        raise Unreadable(f"has {len(columns):,} columns; at most {MAX_COLUMNS:,} can be read.")
    rows = _count(connection, table)
    if not rows:
        raise Unreadable("holds no rows, only a header. Add the data and attach it again.")
    return {
        "name": base,
        "rows": rows,
        "columns": [{"name": name, "type": kind} for name, kind in columns],
    }


def _count(connection: Connection, table: str) -> int:
    counted = connection.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()
    return int(counted[0]) if counted else 0


def _columns(connection: Connection, table: str) -> list[tuple[str, str]]:
    return connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? "
        "ORDER BY column_index",
        [table],
    ).fetchall()


def _identifier(connection: Connection, name: str) -> str:
    """A name that needs no quotes in SQL: `Sales 2024 (final)` becomes `sales_2024_final`."""
    plain = re.sub(r"\W+", "_", name.lower()).strip("_")[:60] or "data"
    if plain[0].isdigit():
        plain = f"t_{plain}"
    reserved = connection.execute(
        "SELECT 1 FROM duckdb_keywords() WHERE keyword_name = ? "
        "AND keyword_category != 'unreserved'",
        [plain],
    ).fetchone()
    return f"{plain}_table" if reserved else plain


# What the readers of one kind give: the table's name, and what creates it under its final name.
type Creations = Iterator[tuple[str, Callable[[str], None]]]


def _create(
    connection: Connection, source: str, parameters: Sequence[Any] = ()
) -> Callable[[str], None]:
    def create(table: str) -> None:
        connection.execute(f"CREATE TABLE {quoted(table)} AS SELECT * FROM {source}", parameters)

    return create


def _open(file: IO[bytes]) -> str:
    """The open file as a path: DuckDB opens nothing else, and its messages tell no real path."""
    file.seek(0)
    return literal(f"/dev/fd/{file.fileno()}")


# --- delimited text ------------------------------------------------------------------------------


def _read_csv(connection: Connection, stem: str, file: IO[bytes]) -> Creations:
    with _utf8(file) as text:
        sample = _sample(text)
        delimiter = _delimiter(sample)
        source = (
            f"read_csv({_open(text)}, delim={literal(delimiter)}, quote='\"', escape='\"', "
            f"comment='', header={_has_header(sample, delimiter)}, skip=0, sample_size=-1, "
            "nullstr=['', 'NULL', 'null', '#N/A', 'NaN', 'nan'])"
        )

        def create(table: str) -> None:
            try:
                _create(connection, source)(table)
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                raise Unreadable(_misfit(text, delimiter)) from error
            _read_decorated_numbers(connection, table, delimiter)

        yield stem, create


def _sample(file: IO[bytes]) -> list[str]:
    """The first whole lines, at most 100 of them."""
    file.seek(0)
    text = file.read(256 * 1024).decode("utf-8", errors="ignore")
    lines = text.splitlines(keepends=True)
    return [
        line for line in (lines[:-1] if len(lines) > 1 and file.read(1) else lines) if line.strip()
    ][:100]


def _delimiter(sample: Sequence[str]) -> str:
    """The sign that splits most lines into as many values as the first; a comma when none does."""
    return max(",;\t|", key=lambda sign: _agreement(sample, sign))


def _agreement(sample: Sequence[str], delimiter: str) -> tuple[float, int]:
    counts = [len(row) for row in _rows(sample, delimiter) if row]
    if not counts or counts[0] < 2:
        return 0.0, 0
    return counts.count(counts[0]) / len(counts), counts[0]


def _has_header(sample: Sequence[str], delimiter: str) -> bool:
    first = next(_rows(sample, delimiter), [])
    return not all(re.fullmatch(r"[-+]?[\d.,:/ T-]*", cell.strip()) for cell in first)


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter=delimiter)
    except csv.Error:
        return


def _misfit(file: IO[bytes], delimiter: str) -> str:
    """Which line does not fit, in words."""
    file.seek(0)
    lines = _decoded(file, "utf-8")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        width = len(next(reader))
        for row in reader:
            if row and len(row) != width:
                return (
                    f"is not an even table: line {reader.line_num} has {len(row)} values, the "
                    f"first line has {width}. Correct the line, or remove lines that are not data."
                )
    except csv.Error as error:
        return f"is not a table: line {reader.line_num} can't be read ({error})."
    return "is not a table that can be read. Save it again as CSV with a header line."


def _decoded(file: IO[bytes], encoding: str) -> io.TextIOWrapper:
    """The file as text, line ends as they are; it stays open when the text is closed."""
    return io.TextIOWrapper(
        io.BufferedReader(_Unclosed(file)), encoding, errors="replace", newline=""
    )


class _Unclosed(io.RawIOBase):
    """Reads from a file without closing it at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


_ENGLISH = r"[-+]?[$€£¥]?\s?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?\s?[$€£¥]?"
_CONTINENTAL = r"[-+]?[$€£¥]?\s?(\d{1,3}([. ]\d{3})+|\d+)(,\d+)?\s?[$€£¥]?"


def _read_decorated_numbers(connection: Connection, table: str, delimiter: str) -> None:
    """Columns such as `1.234,56` or `$1,234.56` into numbers, when every value of theirs is one."""
    styles = {_ENGLISH: ",", _CONTINENTAL: "."}
    if delimiter != ",":  # a comma is free to be a decimal sign
        styles = dict(reversed(styles.items()))
    for column, kind in _columns(connection, table):
        if kind != "VARCHAR":
            continue
        for pattern, grouping in styles.items():
            if _all_match(connection, table, column, pattern):
                cleaned = f"regexp_replace({quoted(column)}, '[$€£¥\\s{grouping}]', '', 'g')"
                connection.execute(
                    f"ALTER TABLE {quoted(table)} ALTER {quoted(column)} "
                    f"TYPE DOUBLE USING CAST(replace({cleaned}, ',', '.') AS DOUBLE)"
                )
                break


def _all_match(connection: Connection, table: str, column: str, pattern: str) -> bool:
    """Whether all values are numbers of this style, and at least one needs it to be read.

    Text of digits alone, such as `007`, is a code and stays text.
    """
    name = quoted(column)
    found = connection.execute(
        f"SELECT bool_and(regexp_full_match(trim({name}), ?)) "
        f"AND bool_or(regexp_matches({name}, '[,.$€£¥]')) "
        f"AND NOT bool_or(regexp_matches({name}, '^0\\d')) FROM {quoted(table)}",
        [pattern],
    ).fetchone()
    return bool(found and found[0])


def _tidy(connection: Connection, table: str) -> None:
    """Names of columns without stray spaces, and times of any zone as UTC without one."""
    taken: set[str] = set()
    for place, (column, _) in enumerate(_columns(connection, table), 1):
        name = distinct(" ".join(column.split()) or f"column{place}", taken)
        if name != column:
            connection.execute(
                f"ALTER TABLE {quoted(table)} RENAME {quoted(column)} TO {quoted(name)}"
            )
    for column, kind in _columns(connection, table):
        if kind == "TIMESTAMP WITH TIME ZONE":
            connection.execute(
                f"ALTER TABLE {quoted(table)} ALTER {quoted(column)} "
                f"TYPE TIMESTAMP USING {quoted(column)} AT TIME ZONE 'UTC'"
            )


# --- JSON and Parquet ----------------------------------------------------------------------------


def _read_json(connection: Connection, stem: str, file: IO[bytes]) -> Creations:
    with _utf8(file) as text:
        text.seek(0)
        start = re.match(rb"\s*(\[\s*\{?|\{)", text.read(64 * 1024))
        if start is None or not start[1].endswith(b"{"):
            raise Unreadable(_NOT_OBJECTS)
        is_list = start[1] != b"{"
        yield stem, _json_table(connection, text, is_list=is_list, min_rows=1 if is_list else 2)


def _read_json_lines(connection: Connection, stem: str, file: IO[bytes]) -> Creations:
    with _utf8(file) as text:
        yield stem, _json_table(connection, text, is_list=False, min_rows=1)


def _json_table(
    connection: Connection, text: IO[bytes], *, is_list: bool, min_rows: int
) -> Callable[[str], None]:
    size = os.fstat(text.fileno()).st_size
    source = (
        f"read_json({_open(text)}, format='{'array' if is_list else 'newline_delimited'}', "
        f"maximum_object_size={size + 1}, sample_size=-1)"
    )

    def create(table: str) -> None:
        try:
            _create(connection, source)(table)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise Unreadable(_NOT_OBJECTS + ("" if is_list else _first_bad_line(text))) from error
        is_plain = [name for name, _ in _columns(connection, table)] == ["json"]
        # One object over a whole file, such as {"data": […]}, would be a table of one row.
        if is_plain or 0 < _count(connection, table) < min_rows:
            raise Unreadable(_NOT_OBJECTS)

    return create


def _first_bad_line(text: IO[bytes]) -> str:
    text.seek(0)
    for number, line in enumerate(text, 1):
        try:
            json.loads(line)
        except ValueError:
            if line.strip():
                return f" Line {number} is not an object."
    return ""


_NOT_OBJECTS = (
    'is not a table: it must be a list of objects, [{"a": 1}, …], or one object per line. '
    "To have it read as text, attach it as .txt."
)


def _read_parquet(connection: Connection, stem: str, file: IO[bytes]) -> Creations:
    def create(table: str) -> None:
        try:
            _create(connection, f"read_parquet({_open(file)})")(table)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise Unreadable("is not a Parquet file that can be read. Export it again.") from error

    yield stem, create


# --- workbooks -----------------------------------------------------------------------------------


def _read_workbook(connection: Connection, stem: str, file: IO[bytes]) -> Creations:
    _check_package(file)
    from openpyxl import load_workbook

    try:
        book = load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # the library raises anything on a crafted file
        raise Unreadable("is not a workbook that can be read. Save it again as .xlsx.") from error
    sheets = [sheet for sheet in book.worksheets if _first_row(sheet)]
    if not sheets:
        raise Unreadable("holds no rows: every sheet is empty.")
    if len(sheets) > MAX_SHEETS:
        raise Unreadable(f"has {len(sheets)} sheets; at most {MAX_SHEETS} can be read.")
    cells = _Budget(MAX_CELLS)
    for sheet in sheets:
        name = stem if len(sheets) == 1 else f"{stem}_{sheet.title}"
        yield name, partial(_sheet_table, connection, sheet, cells)
    book.close()


class _Budget:
    def __init__(self, cells: int) -> None:
        self.left = cells

    def spend(self, cells: int) -> None:
        self.left -= cells
        if self.left < 0:
            raise Unreadable(f"has more than {MAX_CELLS:,} cells. Attach it as CSV instead.")


def _check_package(file: IO[bytes]) -> None:
    """Refuse what is no workbook, is locked, or unpacks to far more than it is."""
    file.seek(0)
    if file.read(8) == _ENCRYPTED:
        raise Unreadable("is protected with a password, or an old .xls. Save it as a plain .xlsx.")
    try:
        with zipfile.ZipFile(file) as package:
            unpacked = sum(entry.file_size for entry in package.infolist())
    except zipfile.BadZipFile as error:
        raise Unreadable("is not a workbook that can be read. Save it again as .xlsx.") from error
    if unpacked > MAX_UNPACKED_BYTES:
        raise Unreadable(
            f"unpacks to {unpacked / 1024**2:,.0f} MB; at most {MAX_UNPACKED_BYTES // 1024**2} MB "
            "are read. Attach it as CSV instead."
        )


def _first_row(sheet: Any) -> list[Any]:
    sheet.reset_dimensions()  # a wrong size in the file would cut or pad the rows
    for row in sheet.iter_rows(values_only=True, max_row=1_000):
        if filled := _trimmed(row):
            return filled
    return []


def _trimmed(row: Sequence[Any]) -> list[Any]:
    """The row up to its last cell that holds something."""
    last = max((place for place, cell in enumerate(row, 1) if cell not in (None, "")), default=0)
    return list(row[:last])


def _sheet_table(connection: Connection, sheet: Any, cells: _Budget, table: str) -> None:
    rows = (filled for row in sheet.iter_rows(values_only=True) if (filled := _trimmed(row)))
    header = next(rows)
    names = _column_names(header)
    kinds: list[set[str]] = [set() for _ in names]
    with _table_file() as (file, writer):
        for row in rows:
            cells.spend(len(row))
            if len(row) > len(names):
                raise Unreadable(
                    f"is not an even table: sheet {sheet.title!r} has {len(row)} values in a row "
                    f"under {len(names)} column names. Name every column."
                )
            for kind, cell in zip(kinds, row, strict=False):
                kind.add(_kind(cell))
            writer.writerow([_text(cell) for cell in row] + [_NULL] * (len(names) - len(row)))
        types = [_type(kind - {""}) for kind in kinds]
        _load_rows(connection, table, dict(zip(names, types, strict=True)), file)


def _column_names(header: Sequence[Any]) -> list[str]:
    taken: set[str] = set()
    return [
        distinct(_text(cell).strip() if cell not in (None, "") else f"column{place}", taken)
        for place, cell in enumerate(header, 1)
    ]


def _kind(cell: Any) -> str:
    match cell:
        case None | "":
            return ""
        case str() if cell.startswith("#") and cell in _ERRORS:
            return ""
        case bool():
            return "BOOLEAN"
        case int():
            return "BIGINT" if abs(cell) < 2**63 else "DOUBLE"
        case float():
            return "DOUBLE"
        case dt.datetime():
            return "DATE" if cell.time() == dt.time() else "TIMESTAMP"
        case dt.date():
            return "DATE"
        case _:
            return "VARCHAR"


_ERRORS = {"#N/A", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#NULL!"}


def _type(kinds: set[str]) -> str:
    """The type that holds every value of a column."""
    for wide, narrow in (("DOUBLE", "BIGINT"), ("TIMESTAMP", "DATE")):
        if kinds == {wide, narrow}:
            return wide
    return kinds.pop() if len(kinds) == 1 else "VARCHAR"


def _text(cell: Any) -> str:
    if _kind(cell) == "":
        return _NULL
    if isinstance(cell, dt.datetime):
        return (cell.date() if _kind(cell) == "DATE" else cell).isoformat()
    if isinstance(cell, dt.date | dt.time):
        return cell.isoformat()
    return str(cell)


# --- texts ---------------------------------------------------------------------------------------


def _load_text(connection: Connection, name: str, lines: Iterator[str]) -> dict[str, Any]:
    characters, count = 0, 0
    with _table_file() as (file, writer):
        for count, line in enumerate(lines, 1):
            characters += len(line)
            if characters > MAX_TEXT_CHARACTERS:
                raise Unreadable(f"has more than {MAX_TEXT_CHARACTERS:,} characters. Split it.")
            for start in range(0, len(line) or 1, LINE_PIECE):
                writer.writerow([name, count, line[start : start + LINE_PIECE]])
        if not characters:
            raise Unreadable("holds no text.")
        columns = {"document": "VARCHAR", "line": "BIGINT", "text": "VARCHAR"}
        _load_rows(connection, LINES_TABLE, columns, file)
    return {"kind": "text", "characters": characters, "lines": count}


def _text_lines(file: IO[bytes]) -> Iterator[str]:
    with _utf8(file) as text:
        text.seek(0)
        for line in _decoded(text, "utf-8"):
            yield line.rstrip("\r\n")


def _pdf_lines(file: IO[bytes]) -> Iterator[str]:
    from pypdf import PdfReader

    file.seek(0)
    try:
        document = PdfReader(file)
        if document.is_encrypted and not document.decrypt(""):
            raise Unreadable("is protected with a password. Save it without one.")
        pages = len(document.pages)
    except Unreadable:
        raise
    except Exception as error:  # the library raises anything on a crafted file
        raise Unreadable("is not a PDF that can be read.") from error
    if pages > MAX_PAGES:
        raise Unreadable(f"has {pages:,} pages; at most {MAX_PAGES:,} can be read.")
    yield from _page_lines(document)


def _page_lines(document: Any) -> Iterator[str]:
    has_text = False
    for number, page in enumerate(document.pages, 1):
        try:
            text = page.extract_text().replace("\x00", "")
        except Exception as error:
            raise Unreadable(f"can't be read: page {number} is damaged.") from error
        has_text |= bool(text.strip())
        yield f"[page {number}]"
        yield from text.splitlines()
    if not has_text:
        raise Unreadable("holds no text, only images. Run text recognition (OCR) over it first.")


# --- shared --------------------------------------------------------------------------------------


@contextmanager
def _utf8(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The file, or a copy in UTF-8 without a byte order mark when it is something else."""
    encoding = _encoding(file)
    if encoding == "utf-8":
        yield file
        return
    file.seek(0)
    with tempfile.TemporaryFile() as copy:
        text = _decoded(file, encoding)
        while piece := text.read(1024 * 1024):
            copy.write(piece.encode())
        copy.flush()
        yield copy


def _encoding(file: IO[bytes]) -> str:
    file.seek(0)
    start = file.read(4)
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return encoding
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8 = True
    while piece := file.read(1024 * 1024):
        if b"\0" in piece:
            raise Unreadable("is not text: it holds binary data. Check what kind of file it is.")
        try:
            decoder.decode(piece)
        except UnicodeDecodeError:
            is_utf8 = False
    # Windows' own superset of Latin-1: what is in it beyond Latin-1 is control characters there.
    return "utf-8" if is_utf8 and not decoder.getstate()[0] else "cp1252"


@contextmanager
def _table_file() -> Iterator[tuple[IO[bytes], Any]]:
    """A file without a name, and a writer of rows into it."""
    with tempfile.TemporaryFile() as file:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        try:
            yield file, csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        finally:
            text.detach()


def _load_rows(
    connection: Connection, table: str, columns: dict[str, str], file: IO[bytes]
) -> None:
    file.flush()
    wanted = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    defined = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
    connection.execute(f"CREATE TABLE IF NOT EXISTS {quoted(table)} ({defined})")
    connection.execute(
        f"INSERT INTO {quoted(table)} SELECT * FROM read_csv({_open(file)}, auto_detect=false, "
        f"header=false, delim=',', quote='\"', escape='\"', nullstr={literal(_NULL)}, "
        f"columns={{{wanted}}})"
    )


_TABLES: dict[str, Callable[[Connection, str, IO[bytes]], Creations]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".tab": _read_csv,
    ".psv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".xlsx": _read_workbook,
}
_TEXTS: dict[str, Callable[[IO[bytes]], Iterator[str]]] = {
    ".txt": _text_lines,
    ".text": _text_lines,
    ".log": _text_lines,
    ".md": _text_lines,
    ".markdown": _text_lines,
    ".pdf": _pdf_lines,
}
KINDS = (*_TABLES, *_TEXTS)
