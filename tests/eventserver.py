"""An HTTP server that takes CloudEvents, to be stopped and started again on the same port."""

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    owner: "EventServer"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.owner.take(dict(self.headers.items()), body)
        if status is None:  # the server is gone
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that it overrides
        """Tests have no use for it."""


class EventServer:
    """`events` has what came: attributes, and `data`. `statuses` are answered first, one each, instead of 202."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.requests = self.port = 0
        self._server: _Server | None = None
        self._up = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self._up = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._up = False
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def take(self, headers: dict[str, str], body: bytes) -> int | None:
        if not self._up:
            return None
        self.requests += 1
        if self.statuses:
            return self.statuses.pop(0)
        self.headers.append(headers)
        content = json.loads(body)
        kind = headers["Content-Type"]
        if kind == "application/cloudevents-batch+json":
            self.events += content
        elif kind == "application/cloudevents+json":
            self.events.append(content)
        else:
            told = {name[3:].lower(): unquote(value) for name, value in headers.items() if name.startswith("ce-")}
            self.events.append({**told, "data": content})
        return 202
