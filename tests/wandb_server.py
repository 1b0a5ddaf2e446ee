"""As much of a W&B server as an upload needs; it keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "qep-bench", "entity": {"id": "e", "name": "team"}}


@dataclass
class Server:
    """A server at ``url``; ``files`` by name as they arrive; while ``stuck`` it takes none."""

    url: str = ""
    stuck: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What W&B's GraphQL interface says to the few questions of an upload."""
        if "upsertBucket" in query:
            bucket = {"id": "b", "name": variables["name"], "config": "{}", "project": PROJECT}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/up/{n}"} for n in variables["files"]]
            found = {"runID": "b", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": found}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "team", "username": "me", "flags": "{}"}
            return {"data": {"viewer": viewer}}
        if "createArtifact" in query:
            return {"errors": [{"message": "no artifacts here"}]}
        return {"data": {"serverInfo": {"features": []}, "project": None}}


@contextmanager
def serving(stuck: bool = False) -> Iterator[Server]:
    """A server on a free port of this machine."""
    state = Server(stuck=stuck)

    class Handler(BaseHTTPRequestHandler):
        def body(self) -> bytes:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            packed = self.headers.get("Content-Encoding") == "gzip"
            return gzip.decompress(content) if packed else content

        def reply(self, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            body = self.body()
            if self.path != "/graphql":
                return self.reply({})
            asked = json.loads(body)
            return self.reply(state.answer(asked["query"], asked.get("variables") or {}))

        def do_PUT(self) -> None:
            body = self.body()
            if state.stuck:
                state.released.wait()
            state.files[self.path.removeprefix("/up/")] = body
            self.reply({})

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
