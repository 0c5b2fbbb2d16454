"""A small hub on loopback that speaks to the real hub client: files, revisions, gates, and transfers that break."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """What the server holds and does.

    Attributes:
        files: Path below the address of a revision → content.
        large: Those of them that are kept by their sha256, as the hub keeps weights; the others by git's sum.
        told: Path → the sum that is told in place of the right one.
        breaks: Path → after how many bytes each of the next transfers ends.
        elsewhere: The host that large files are kept at, to which the hub sends whoever asks.
        gated: Whether the repository must be asked for first.
        asked: Every request: method, path, `Range`, `Authorization`.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    told: dict[str, str] = field(default_factory=dict)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    elsewhere: str = ""
    gated: bool = False
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def transfers(self, path: str) -> list[str | None]:
        """The `Range` of each GET of a file."""
        return [span for method, asked, span, _ in self.asked if method == "GET" and asked.endswith(path)]

    def sum_of(self, path: str) -> str:
        content = self.files[path]
        if path in self.told:
            return self.told[path]
        if path in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def serve(hub: Hub):
    """Yields once the hub answers at `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
            if hub.gated:
                return self.refuse(403, "GatedRepo")
            if path.startswith("/api/models/"):
                return self.tree()
            _, _, repository, kind, revision, file = (path.split("/", 5) + [""] * 6)[:6]
            if repository and kind == "resolve" and revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            name = file if kind == "resolve" else path.lstrip("/")
            if name not in hub.files:
                return self.refuse(404, "EntryNotFound")
            return self.file(name, body)

        def tree(self):
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": hub.sum_of(path)}
                for path, content in hub.files.items()
            ]
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(rows).encode())

        def file(self, name, body):
            content = hub.files[name]
            begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            etag = f'"{hub.sum_of(name)}"'
            headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "Content-Type": "application/octet-stream"}
            if name in hub.large:
                headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
            if hub.elsewhere and name in hub.large:
                self.send(302, headers | {"Location": f"{hub.elsewhere}/{name}"}, b"")
                return
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            left = content[begin:]
            breaks = hub.breaks.get(name) if body else None
            self.send(206 if begin else 200, headers, left, body, left[: breaks.pop(0)] if breaks else left)

        def refuse(self, code, reason):
            self.send(code, {"X-Error-Code": reason, "X-Error-Message": reason}, b"")

        def send(self, code, headers, content, body=True, sent=None):
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content if sent is None else sent)
            if sent is not None and len(sent) < len(content):
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
