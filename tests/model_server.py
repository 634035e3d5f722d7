"""A small OpenAI-compatible server: the real client and the real wire, without a model.

It plays a Magentic team by rules. The manager lets every agent speak in turn and ends after
`rounds` replies; agents answer with a numbered reply, after one call of `tool` when they have it.
It can also misbehave on purpose: see the methods of `ModelServer`.

As a script it serves until it is stopped: `python -m tests.model_server --port 9000`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar

MODEL = "test-model"
HANG_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came in. `kind` is which of the manager's prompts it is, or "worker"."""

    path: str
    authorization: str
    body: dict[str, Any]
    kind: str

    @property
    def text(self) -> str:
        """All that the model would have read."""
        return "\n".join(_text(message) for message in self.body.get("messages", []))


@dataclass(frozen=True, kw_only=True)
class Failure:
    status: int
    retry_after: str = ""


class Hang:
    """Accept the request and never answer."""


class Cut:
    """Break the connection off in the middle of the answer."""


class BadLedger:
    """Answer a progress ledger with something that is not JSON. Other requests do not use it up."""


type Mishap = Failure | Hang | Cut | BadLedger


@dataclass(kw_only=True)
class ModelServer:
    """Started with `with`, or by the fixture `model_server`. Settings may change while it runs."""

    rounds: int = 3
    tool: tuple[str, dict[str, Any]] | None = None
    reply_bytes: int = 0
    reply_suffix: str = ""
    stalled_from: int | None = None  # from this many replies on, the ledger sees no progress
    token_delay_seconds: float = 0.0
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    mishaps: deque[Mishap] = field(default_factory=deque)

    def __enter__(self) -> ModelServer:
        self.stopping = threading.Event()
        self._arrival = threading.Condition()
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.owner = self
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def fail(self, times: int = 1, *, status: int = 500, retry_after: str = "") -> None:
        """Answer the next requests with an error. `retry_after` is the header's value."""
        self.mishaps.extend([Failure(status=status, retry_after=retry_after)] * times)

    def hang(self, times: int = 1) -> None:
        self.mishaps.extend([Hang()] * times)

    def cut(self, times: int = 1) -> None:
        self.mishaps.extend([Cut()] * times)

    def break_ledger(self, times: int = 1) -> None:
        self.mishaps.extend([BadLedger()] * times)

    def count(self, kind: str) -> int:
        return sum(request.kind == kind for request in self.requests)

    def record(self, request: Request) -> None:
        with self._arrival:
            self.requests.append(request)
            self._arrival.notify_all()

    def wait_for_requests(self, count: int = 1, *, timeout_seconds: float = 10) -> None:
        """Block until `count` requests have come in."""
        with self._arrival:
            if not self._arrival.wait_for(lambda: len(self.requests) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came in.")

    def next_mishap(self, kind: str) -> Mishap | None:
        """Take the next one off the list, unless it waits for a ledger and this is none."""
        if not self.mishaps or (isinstance(self.mishaps[0], BadLedger) and kind != "ledger"):
            return None
        return self.mishaps.popleft()


class _Server(ThreadingHTTPServer):
    owner: ModelServer
    daemon_threads = False  # so that closing the server waits for their sockets to be closed

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client has gone: it happens
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    ids: ClassVar = itertools.count(1)
    answer_id = ""  # one for all pieces of an answer: clients tell answers apart by it

    def do_POST(self) -> None:
        owner = self.server.owner
        self.answer_id = f"chatcmpl-{next(self.ids)}"
        self.close_connection = True  # an idle kept-alive connection would hold its thread
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = kind_of(body)
        owner.record(
            Request(
                path=self.path,
                authorization=self.headers.get("Authorization", ""),
                body=body,
                kind=kind,
            )
        )
        mishap = owner.next_mishap(kind)
        if not self.path.endswith("/chat/completions"):
            self._error(404, "Only /v1/chat/completions is served.")
        elif isinstance(mishap, Failure):
            self._error(mishap.status, "Made to fail.", retry_after=mishap.retry_after)
        elif isinstance(mishap, Hang):
            owner.stopping.wait(HANG_SECONDS)
        else:
            self._complete(body, answer_to(body, owner, mishap), is_cut=isinstance(mishap, Cut))

    def _complete(self, body: dict[str, Any], message: dict[str, Any], *, is_cut: bool) -> None:
        usage = _usage(body, message)
        if body.get("stream"):
            self._stream(body, message, usage, is_cut=is_cut)
            return
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(message)}
        data = json.dumps(self._envelope("chat.completion", [choice]) | {"usage": usage}).encode()
        self._send_head(200, {"Content-Type": "application/json", "Content-Length": len(data)})
        self.wfile.write(data[: len(data) // 2] if is_cut else data)

    def _stream(
        self, body: dict[str, Any], message: dict[str, Any], usage: dict[str, int], *, is_cut: bool
    ) -> None:
        self._send_head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        deltas = _deltas(message)
        for delta in deltas[: len(deltas) // 2] if is_cut else deltas:
            self._event(self._chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
            self.server.owner.stopping.wait(self.server.owner.token_delay_seconds)
        if is_cut:
            return
        last = {"index": 0, "delta": {}, "finish_reason": _finish_reason(message)}
        self._event(self._chunk([last]))
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event(self._chunk([]) | {"usage": usage})
        self._write_chunk(b"data: [DONE]\n\n")
        self._write_chunk(b"")

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._envelope("chat.completion.chunk", choices)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": int(time.time()),
            "model": MODEL,
            "choices": choices,
        }

    def _event(self, data: dict[str, Any]) -> None:
        self._write_chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _write_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _error(self, status: int, message: str, *, retry_after: str = "") -> None:
        data = json.dumps({"error": {"message": message, "code": str(status)}}).encode()
        headers: dict[str, Any] = {"Content-Type": "application/json", "Content-Length": len(data)}
        if retry_after:
            headers["Retry-After"] = retry_after
        self._send_head(status, headers)
        self.wfile.write(data)

    def _send_head(self, status: int, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `requests` has it all."""


def kind_of(body: dict[str, Any]) -> str:
    """Which of the framework's manager prompts this is; "worker" when it is none of them."""
    messages = body.get("messages") or [{}]
    last = _text(messages[-1]).strip()
    for kind, mark in _MARKS.items():
        if mark in last:
            return kind
    return "worker"


_MARKS = {
    "facts": "Below I will present you a request.",
    "plan": "Fantastic. To address this request",
    "facts_update": "As a reminder, we are working to solve the following task:",
    "plan_update": "Please briefly explain what went wrong on this last run",
    "ledger": "Recall we are working on the following request:",
    "final": "We have completed the task.",
}


def answer_to(body: dict[str, Any], script: ModelServer, mishap: Mishap | None) -> dict[str, Any]:
    """The assistant's message, as the wire has it."""
    messages, kind = body["messages"], kind_of(body)
    if kind == "ledger":
        text = "no ledger" if isinstance(mishap, BadLedger) else _ledger(messages, script)
        return {"role": "assistant", "content": text}
    if kind == "final":
        return {"role": "assistant", "content": f"FINAL ANSWER for: {_task(_text(messages[-1]))}"}
    if kind != "worker":
        return {"role": "assistant", "content": f"{kind.upper()}: one step after another."}
    return _reply(body, script)


def _reply(body: dict[str, Any], script: ModelServer) -> dict[str, Any]:
    last = body["messages"][-1]
    offered = {tool["function"]["name"] for tool in body.get("tools") or []}
    if script.tool and script.tool[0] in offered and last["role"] != "tool":
        return {"role": "assistant", "content": None, "tool_calls": [_tool_call(script.tool)]}
    text = f"Reply to: {_text(last)[:500]}"
    text = text.ljust(script.reply_bytes, ".") + script.reply_suffix
    return {"role": "assistant", "content": text}


def _tool_call(tool: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    name, arguments = tool
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{next(_Handler.ids)}", "type": "function", "function": function}


def _ledger(messages: list[dict[str, Any]], script: ModelServer) -> str:
    prompt = _text(messages[-1])
    names = re.search(r"select from: ([^)]*)\)", prompt)
    agents = [name.strip() for name in names[1].split(",")] if names else []
    replies = sum(message.get("name") in agents for message in messages)
    is_stalled = script.stalled_from is not None and replies >= script.stalled_from
    speaker = agents[replies % len(agents)]
    return json.dumps(
        {
            "is_request_satisfied": {"reason": "By count.", "answer": replies >= script.rounds},
            "is_in_loop": {"reason": "By rule.", "answer": is_stalled},
            "is_progress_being_made": {"reason": "By rule.", "answer": not is_stalled},
            "next_speaker": {"reason": "In turn.", "answer": speaker},
            "instruction_or_question": {
                "reason": "In order.",
                "answer": f"Step {replies + 1}: {speaker}, do your part.",
            },
        }
    )


def _task(prompt: str) -> str:
    found = re.search(r"following task:\s*(.*?)\s*We have completed the task", prompt, re.DOTALL)
    return found[1] if found else ""


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message in pieces; a tool call's arguments come in three, as real servers send them."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in re.findall(r"\S+\s*|\s+", message["content"] or "")]
    for index, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        opening = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        deltas.append({"tool_calls": [opening]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in _thirds(function["arguments"])
        ]
    return deltas


def _thirds(text: str) -> list[str]:
    size = max(1, -(-len(text) // 3))
    return [text[start : start + size] for start in range(0, len(text), size)]


def _usage(body: dict[str, Any], message: dict[str, Any]) -> dict[str, int]:
    """About four characters a token, as English has."""
    read = sum(len(_text(item)) for item in body["messages"]) // 4 + 1
    written = len(json.dumps(message)) // 4 + 1
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _finish_reason(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an OpenAI-compatible test model.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-delay", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    with ModelServer(
        port=options.port, rounds=options.rounds, token_delay_seconds=options.token_delay
    ) as server:
        print(server.url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
