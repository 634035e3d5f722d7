"""A small emulation of Azure Cosmos DB's REST interface, for what `azure-cosmos` asks.

It checks what the service checks and our code could get wrong: the signature of each request, the
partition key, the size of an item, the shape of a query; and it answers in pages. It keeps
everything in memory. It is no measure of the service's speed, consistency or throttling.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

KEY = base64.b64encode(b"a key for tests, and for nothing else").decode()
MAX_ITEM_BYTES = 2 * 1024 * 1024
PAGE_BYTES = 4 * 1024 * 1024
PAGE_ITEMS = 100

_QUERY = re.compile(
    r"SELECT (?P<fields>\*|c\.\w+(?:, c\.\w+)*) FROM c"
    r"(?: WHERE (?:c\.id IN \((?P<names>[^)]*)\)|IS_DEFINED\(c\.(?P<defined>\w+)\)))?"
)
_TYPES = ("dbs", "colls", "docs", "pkranges")


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CosmosServer:
    """Runs while its `with` block does. `connection_string` is what a client needs."""

    def __init__(self) -> None:
        self.databases: dict[str, dict[str, dict[str, Any]]] = {}
        """Items by database, container and id."""
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self.connection_string = f"AccountEndpoint={self.url};AccountKey={KEY};"

    def __enter__(self) -> CosmosServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def clear(self) -> None:
        """Forget all items; databases and containers stay."""
        with self.lock:
            for containers in self.databases.values():
                for items in containers.values():
                    items.clear()

    def answer(
        self, method: str, path: list[str], headers: Any, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, document and further headers."""
        match method, path:
            case "GET", []:
                return 200, self._account(), {}
            case "POST", ["dbs"]:
                return 201, self._create(self.databases, body), {}
            case "GET", ["dbs", name]:
                _one(self.databases, name)
                return 200, _resource(name), {}
            case "POST", ["dbs", name, "colls"]:
                return 201, self._create(_one(self.databases, name), body), {}
            case "GET", ["dbs", database, "colls", name]:
                _one(_one(self.databases, database), name)
                return 200, {**_resource(name), "partitionKey": _PARTITION_KEY}, {}
            case "GET", ["dbs", database, "colls", name, "pkranges"]:
                _one(_one(self.databases, database), name)
                return _ranges(headers)
            case _, ["dbs", database, "colls", name, "docs", *rest]:
                items = _one(_one(self.databases, database), name)
                return self._items(method, items, rest, headers, body)
        raise Refusal(400, f"The emulation does not know {method} {'/'.join(path)}.")

    def _items(
        self, method: str, items: dict[str, Any], rest: list[str], headers: Any, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        match method, rest:
            case "POST", [] if headers.get("x-ms-documentdb-isquery", "").lower() == "true":
                return _page(_found(items, json.loads(body)), headers)
            case "POST", []:
                return _written(items, headers, body)
            case "GET", [name]:
                _check_key(headers, name)
                return 200, _one(items, name), {}
            case "DELETE", [name]:
                _check_key(headers, name)
                _one(items, name)
                del items[name]
                return 204, None, {}
        raise Refusal(400, f"The emulation does not know {method} on items.")

    def _account(self) -> dict[str, Any]:
        here = [{"name": "Test", "databaseAccountEndpoint": self.url}]
        return {
            "id": "test",
            "_rid": "test",
            "writableLocations": here,
            "readableLocations": here,
            "enableMultipleWriteLocations": False,
            "userConsistencyPolicy": {"defaultConsistencyLevel": "Strong"},
        }

    def _create(self, parent: dict[str, Any], body: bytes) -> dict[str, Any]:
        document = json.loads(body)
        if document["id"] in parent:
            raise Refusal(409, "It exists.")
        if parent is not self.databases and document["partitionKey"]["paths"] != ["/id"]:
            raise Refusal(400, "The emulation partitions by /id alone.")
        parent[document["id"]] = {}
        return {**document, **_resource(document["id"])}


_PARTITION_KEY = {"paths": ["/id"], "kind": "Hash", "version": 2}


def _resource(name: str) -> dict[str, Any]:
    rid = base64.b64encode(name.encode()[:8]).decode()
    return {"id": name, "_rid": rid, "_self": f"{name}/", "_etag": '"1"', "_ts": 1}


def _one(parent: dict[str, Any], name: str) -> Any:
    if name not in parent:
        raise Refusal(404, f"There is no {name}.")
    return parent[name]


def _check_key(headers: Any, name: str) -> None:
    given = json.loads(headers.get("x-ms-documentdb-partitionkey", "null"))
    if given != [name]:
        raise Refusal(400, f"The partition key {given} is not the item's.")


def _ranges(headers: Any) -> tuple[int, Any, dict[str, str]]:
    if headers.get("if-none-match"):
        return 304, None, {"etag": '"1"'}
    whole = {**_resource("0"), "minInclusive": "", "maxExclusive": "FF", "parents": []}
    return 200, {"_rid": "r", "PartitionKeyRanges": [whole], "_count": 1}, {"etag": '"1"'}


def _written(items: dict[str, Any], headers: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
    document = json.loads(body)
    name = document["id"]
    _check_key(headers, name)
    if len(body) > MAX_ITEM_BYTES:
        raise Refusal(413, "Request size is too large")
    if name in items and headers.get("x-ms-documentdb-is-upsert", "").lower() != "true":
        raise Refusal(409, "The item exists.")
    items[name] = document
    return 201, {**_resource(name), **document}, {}


def _found(items: dict[str, Any], query: dict[str, Any]) -> list[dict[str, Any]]:
    text = re.sub(r"\s+", " ", query["query"]).strip()
    parsed = _QUERY.fullmatch(text)
    if parsed is None:
        raise Refusal(400, f"The emulation does not read the query {text}")
    found = list(items.values())
    if parsed["names"]:
        values = {item["name"]: item["value"] for item in query["parameters"]}
        wanted = {values[name.strip()] for name in parsed["names"].split(",")}
        found = [items[name] for name in sorted(wanted) if name in items]
    if parsed["defined"]:
        found = [item for item in found if parsed["defined"] in item]
    if parsed["fields"] == "*":
        return found
    fields = [field.strip().removeprefix("c.") for field in parsed["fields"].split(",")]
    return [{field: item[field] for field in fields if field in item} for item in found]


def _page(found: list[dict[str, Any]], headers: Any) -> tuple[int, Any, dict[str, str]]:
    start = int(headers.get("x-ms-continuation") or 0)
    page: list[dict[str, Any]] = []
    size_bytes = 0
    for item in found[start : start + PAGE_ITEMS]:
        size_bytes += len(json.dumps(item))
        if page and size_bytes > PAGE_BYTES:
            break
        page.append(item)
    end = start + len(page)
    more = {"x-ms-continuation": str(end)} if end < len(found) else {}
    return 200, {"_rid": "r", "Documents": page, "_count": len(page)}, more


def _signature(method: str, path: list[str], date: str) -> str:
    """learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources has the rule."""
    kind = next((part for part in reversed(path) if part in _TYPES), "")
    link = "/".join(path[:-1] if len(path) % 2 else path)
    text = f"{method.lower()}\n{kind}\n{link}\n{date.lower()}\n\n"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    return f"type=master&ver=1.0&sig={base64.b64encode(digest).decode()}"


def _handler_of(server: CosmosServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        do_POST = do_DELETE = do_GET  # noqa: N815

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = [unquote(part) for part in self.path.split("/") if part]
            try:
                self._check_signature(path)
                with server.lock:
                    status, document, headers = server.answer(
                        self.command, path, self.headers, body
                    )
            except Refusal as refusal:
                status, headers = refusal.status, {}
                document = {"code": str(refusal.status), "message": str(refusal)}
            self._send(status, document, headers)

        def _check_signature(self, path: list[str]) -> None:
            given = unquote(self.headers.get("authorization", ""))
            if given != _signature(self.command, path, self.headers.get("x-ms-date", "")):
                raise Refusal(401, "The signature is not right for this request.")

        def _send(self, status: int, document: Any, headers: dict[str, str]) -> None:
            content = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("x-ms-session-token", "0:1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: tests are quiet."""

    return Handler
