"""The child's side of `Reader`: reads one JSON request a line, writes one JSON answer a line.

Requests: `{"do": "load", "files": [{"name", "path"}]}` once, then
`{"do": "query", "sql", "limit"}`; each with `seconds`, after which the process ends itself should
nobody else end it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

import duckdb

from workflows.reader.files import Unreadable, load
from workflows.reader.queries import Refused, connect, lock, query

MEMORY_LIMIT_BYTES = 3 * 1024**3
"""Of the whole process; DuckDB keeps itself to a third of it."""
FILE_LIMIT_BYTES = 1024**3


def main() -> None:
    _limit()
    requests, answers = sys.stdin.buffer, _private_stdout()
    connection = connect()
    actions: dict[str, Callable[[dict[str, Any]], Any]] = {
        "load": lambda request: _load(connection, request),
        "query": lambda request: query(connection, request["sql"], limit=request["limit"]),
    }
    for line in requests:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + 5)
        answers.write(json.dumps(_answer(actions[request["do"]], request)).encode() + b"\n")
        answers.flush()
        signal.alarm(0)


def _answer(act: Callable[[dict[str, Any]], Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": act(request)}
    except (Unreadable, Refused) as error:
        return {"error": str(error)}
    except (MemoryError, duckdb.OutOfMemoryException):
        return {
            "error": "This needs more memory than is allowed. Ask for less: filter earlier, "
            "aggregate, or attach a smaller file."
        }
    except duckdb.Error as error:
        return {"error": str(error).strip()}


def _load(connection: duckdb.DuckDBPyConnection, request: dict[str, Any]) -> list[dict[str, Any]]:
    summaries = load(connection, [(file["name"], file["path"]) for file in request["files"]])
    lock(connection)
    return summaries


def _limit() -> None:
    limits = {resource.RLIMIT_FSIZE: FILE_LIMIT_BYTES, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # elsewhere the kernel refuses to set it
        limits[resource.RLIMIT_AS] = MEMORY_LIMIT_BYTES
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _private_stdout() -> IO[bytes]:
    """Keep the pipe for answers alone: what a library prints goes nowhere."""
    pipe = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return pipe


if __name__ == "__main__":
    main()
