"""Connections to web servers that stay open, and what is told to which host."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""


class Login:
    """The name and password in a URL, as a header for its own host."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self._origin, self._header = origin(url), {}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._header = {"Authorization": f"Basic {b64encode(pair.encode()).decode('ascii')}"}

    def __call__(self, url: str) -> Mapping[str, str]:
        return self._header if origin(url) == self._origin else {}


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return the scheme, host and port of a URL: what a credential is for."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


class Connections:
    """One open connection per thread and origin."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: set[http.client.HTTPConnection] = set()
        self._mutex = threading.Lock()

    def to(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, str]:
        """Return a connection, and the target to ask for on it."""
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        target += f"?{parts.query}" if parts.query else ""
        assert parts.hostname is not None
        proxy = None if proxy_bypass(parts.netloc.rpartition("@")[2]) else getproxies().get(parts.scheme)
        if proxy and parts.scheme == "http":
            target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
        key = origin(parts.geturl())
        if getattr(self._local, "key", None) != key:
            self.drop()
            connection = _connection(parts, proxy)
            with self._mutex:
                self._all.add(connection)
            self._local.key, self._local.connection = key, connection
        return self._local.connection, target

    def drop(self) -> None:
        """Close this thread's connection, whose state nobody knows."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.key = self._local.connection = None
            with self._mutex:
                self._all.discard(connection)
            connection.close()

    def close(self) -> None:
        """Close all, also under a thread that waits for an answer: it gets an error."""
        with self._mutex:
            for connection in self._all:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)
                connection.close()


def _connection(parts: SplitResult, proxy: str | None) -> http.client.HTTPConnection:
    host, port = parts.hostname, parts.port
    assert host is not None
    through = urlsplit(proxy if "://" in (proxy or "") else f"http://{proxy}") if proxy else None
    if parts.scheme == "http":
        if through is not None:
            host, port = through.hostname or host, through.port or 80
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    context = ssl.create_default_context()
    if through is None:
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    tunnel = http.client.HTTPSConnection(
        through.hostname or "", through.port or 80, timeout=TIMEOUT, context=context
    )
    login = Login(through.geturl())(through.geturl())
    tunnel.set_tunnel(host, port, {f"Proxy-{name}": value for name, value in login.items()})
    return tunnel
