"""One read-only statement over the loaded tables, and a database from which nothing leads out."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any

import duckdb

from workflows.reader import quoted

CELL_LIMIT = 20_000
"""Characters of one value."""
ANSWER_LIMIT = 8_000_000
"""Characters of all values of one answer."""

ONLY_QUERIES = "Only SELECT, WITH, FROM, VALUES, DESCRIBE, SUMMARIZE and SHOW are allowed"


class Refused(Exception):
    """The statement is not one that may run here."""


def connect() -> duckdb.DuckDBPyConnection:
    """An empty database in memory that never loads an extension or spills to a disk."""
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": "1GB",
            "threads": "2",
            "temp_directory": "",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_persistent_secrets": "false",
            "python_enable_replacements": "false",
            # Files come as /dev/fd/N: a later file of the same N must not be taken for the first.
            "enable_external_file_cache": "false",
        },
    )
    # Error messages name these folders: let them not tell where anything lies.
    connection.execute("SET home_directory = '/nowhere'; SET secret_directory = '/nowhere'")
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """From now on: no file, no network, and no way to change that."""
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def query(connection: duckdb.DuckDBPyConnection, sql: str, *, limit: int) -> dict[str, Any]:
    """Columns, types, at most `limit` rows as JSON values, and whether there were more.

    Raises `Refused` for anything but one query, `duckdb.Error` for a wrong one.
    """
    _check(connection, sql)
    # A query may hide a change (`WITH x AS (DELETE …)`), which this refuses.
    connection.execute("BEGIN TRANSACTION READ ONLY")
    try:
        found = _without_zones(connection.sql(sql))
        rows = found.limit(limit + 1).fetchall()
        kept = _fitting([[_plain(value) for value in row] for row in rows[:limit]])
        return {
            "columns": found.columns,
            "types": [str(kind) for kind in found.types],
            "rows": kept,
            "is_truncated": len(rows) > len(kept),
        }
    finally:
        connection.execute("ROLLBACK")


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    if not statements:
        raise Refused(f"The query is empty. {ONLY_QUERIES}.")
    if len(statements) > 1:
        raise Refused(f"One statement at a time, please: this holds {len(statements)}.")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise Refused(f"{ONLY_QUERIES}: this is {kind.name}. The tables can be read, not changed.")


def _without_zones(found: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Times with a zone as text: DuckDB wants a further package to hand them over."""
    kinds = [str(kind) for kind in found.types]
    if not any("TIME ZONE" in kind for kind in kinds):
        return found
    return found.project(
        ", ".join(
            f"CAST(#{place} AS VARCHAR) AS {quoted(column)}" if "TIME ZONE" in kind else f"#{place}"
            for place, (column, kind) in enumerate(zip(found.columns, kinds, strict=True), 1)
        )
    )


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return _cut(value)
        case Decimal():
            return format(value, "f")
        case dt.datetime():
            return value.isoformat(sep=" ")
        case dt.date() | dt.time():
            return value.isoformat()
        case bytes():
            return _cut(value.hex())
        case dict() | list() | tuple():
            return _cut(json.dumps(value, default=str, ensure_ascii=False))
        case _:
            return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= CELL_LIMIT else f"{text[:CELL_LIMIT]}…"


def _fitting(rows: list[list[Any]]) -> list[list[Any]]:
    size = 0
    for count, row in enumerate(rows):
        size += sum(len(value) if isinstance(value, str) else 8 for value in row)
        if size > ANSWER_LIMIT:
            return rows[:count]
    return rows
