"""A web server on the loopback that sends parts of files, real or made up, and fails when it is told to."""

import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Content:
    """A file on the server: `head`, and zeros up to `size`."""

    head: bytes
    etag: str | None = '"1"'
    size: int = -1

    def __post_init__(self) -> None:
        self.size = len(self.head) if self.size < 0 else self.size

    def part(self, start: int, stop: int) -> bytes:
        found = self.head[start:stop]
        return found + bytes(max(0, min(stop, self.size) - start - len(found)))


@dataclass
class Request:
    """A request that came: its path, its range and its headers."""

    path: str
    range: tuple[int, int] | None
    headers: dict[str, str]


@dataclass
class RangeServer:
    """Use as a context manager. Every request takes the next of `faults`, which are methods of `Faults`."""

    files: dict[str, Content] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    routes: Callable[["Handler", str, bytes], bool] = lambda handler, method, body: False
    faults: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0

    def __enter__(self) -> "RangeServer":
        handler = type("Bound", (Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.mutex = threading.Lock()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def ranges(self) -> list[tuple[int, int] | None]:
        return [r.range for r in self.requests]


class Handler(BaseHTTPRequestHandler):
    owner: RangeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner, path = self.owner, self.path.partition("?")[0]
        found = RANGE.fullmatch(self.headers.get("Range", ""))
        wanted = (int(found[1]), int(found[2]) + 1) if found else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        with owner.mutex:
            owner.requests.append(Request(self.path, wanted, headers))
            fault = owner.faults.pop(0) if owner.faults else ""
        if fault and getattr(self, f"fault_{fault}")(path, wanted):
            return
        if owner.routes(self, method, body):
            return
        if path in owner.redirects:
            self.answer(302, b"", {"Location": owner.redirects[path]})
        elif path not in owner.files:
            self.answer(404, b"no such file")
        else:
            self.send_part(owner.files[path], wanted)

    def send_part(self, file: Content, wanted: tuple[int, int] | None, **changes: str) -> None:
        etag = {"ETag": file.etag} if file.etag else {}
        if wanted is None:
            self.answer(200, file.part(0, file.size), {**etag, **changes})
            return
        start, stop = wanted[0], min(wanted[1], file.size)
        if start >= file.size:
            self.answer(416, b"", {"Content-Range": f"bytes */{file.size}"})
            return
        where = {"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"}
        self.answer(206, file.part(start, stop), {**where, **etag, **changes})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            with self.owner.mutex:
                self.owner.sent += len(body)

    def fault_reset(self, path: str, wanted: tuple[int, int] | None) -> bool:
        """Reset the connection instead of an answer."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True
        return True

    def fault_short(self, path: str, wanted: tuple[int, int]) -> bool:
        """Close the connection in the middle of the body."""
        start, stop = wanted
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{self.owner.files[path].size}")
        self.send_header("ETag", str(self.owner.files[path].etag))
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(self.owner.files[path].part(start, stop)[: (stop - start) // 2])
        self.close_connection = True
        return True

    def fault_busy(self, path: str, wanted: object) -> bool:
        self.answer(429, b"", {"Retry-After": "0"})
        return True

    def fault_busy_for_hours(self, path: str, wanted: object) -> bool:
        self.answer(429, b"", {"Retry-After": "7200"})
        return True

    def fault_busy_for_minutes(self, path: str, wanted: object) -> bool:
        self.answer(429, b"", {"Retry-After": "200"})
        return True

    def fault_broken(self, path: str, wanted: object) -> bool:
        self.answer(503, b"")
        return True

    def fault_none(self, path: str, wanted: object) -> bool:
        """Answer as ever."""
        return False

    def fault_changed(self, path: str, wanted: object) -> bool:
        """Answer with another file of the same size from now on."""
        old = self.owner.files[path]
        self.owner.files[path] = Content(old.head, '"2"', old.size)
        return False

    def fault_whole(self, path: str, wanted: object) -> bool:
        """Know no ranges, and begin to send all of it."""
        self.send_response(200)
        self.send_header("Content-Length", str(self.owner.files[path].size))
        self.end_headers()
        self.wfile.write(self.owner.files[path].head[:1000])
        self.close_connection = True
        return True

    def fault_other_part(self, path: str, wanted: tuple[int, int]) -> bool:
        self.send_part(self.owner.files[path], (wanted[0] + 1, wanted[1] + 1))
        return True
