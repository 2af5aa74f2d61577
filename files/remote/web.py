"""Parts of files on web servers, by HTTP range requests over connections that stay open.

RFC 9110, section 14. Every answer is checked: it has to be the part that was asked for, of the object that
was there before. A server that sends a whole file instead is refused before it has.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

from ...formats.errors import CheckpointError
from ...version import VERSION
from .address import RemoteFile, shown
from .connections import Connections, Login, origin
from .source import RangeSource, Trouble, changed

_HOPS = 6
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_EMPTY = re.compile(r"bytes \*/(\d{1,18})")
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_FOR_GOOD = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
"""What, at the first contact, is a wrong address rather than a lost connection."""

_LEFT_IDLE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""What a connection that the server has closed meanwhile answers to the next request."""

Headers = Callable[[str], Mapping[str, str]]
"""Returns what a request to a URL carries: credentials only for the hosts that they are meant for."""


class WebSource(RangeSource):
    """A file on a web server.

    url: where it is asked for. headers: what requests carry. size, version: where they are known already, as
    the hub tells them; then no ETag is looked at. Without a size, the server is asked.

    CheckpointError, naming `place`, for a file that is not there or not to be read by parts.
    """

    def __init__(
        self,
        place: RemoteFile,
        url: str,
        headers: Headers | None = None,
        size: int | None = None,
        version: str = "",
    ):
        super().__init__(place, size or 0, version)
        try:
            if not origin(url)[1]:
                raise ValueError("it names no host")
        except ValueError as e:
            raise CheckpointError(f"{place}: is no web address: {e}") from None
        self._url = self._final = url
        self._headers = headers or Login(url)
        self._told = size is not None
        self._met = False
        self._connections = Connections()
        if not self._told:
            self._look()

    def _look(self) -> None:
        """Find out size and version, by asking for the first byte."""
        failures = 0
        while True:
            try:
                with self._answer(0, 1) as answer:
                    empty = _EMPTY.fullmatch(answer.getheader("Content-Range", ""))
                    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and empty:
                        self.size, self.version = int(empty[1]), _version(answer)
                        return
                    total = self._part(answer, 0, 1)[1]
                    if total is None:
                        raise CheckpointError(f"{self.place}: the server does not tell the file's size")
                    self.size, self.version = total, _version(answer)
                    answer.read()
                    return
            except Trouble as trouble:
                failures += 1
                self._patience.wait(self.place, trouble, failures)

    def fetch(self, offset: int, buffer: memoryview) -> int:
        """See `RangeSource.fetch`."""
        with self._answer(offset, len(buffer)) as answer:
            count, total = self._part(answer, offset, len(buffer))
            if total not in (None, self.size) or (not self._told and _version(answer) != self.version):
                raise changed(self.place)
            got = 0
            try:
                while got < count and (n := answer.readinto(buffer[got:count])):
                    got += n
            except (OSError, http.client.HTTPException) as e:
                raise Trouble(f"the connection was lost ({_reason(e)})", got=got) from e
            if got < count:
                raise Trouble("the connection was closed too early", got=got)
            return got

    def _part(self, answer: http.client.HTTPResponse, offset: int, count: int) -> tuple[int, int | None]:
        """Check what an answer says it is; return how many bytes it has, and the size of the whole file."""
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            self._refuse(answer)
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise CheckpointError(f"{self.place}: the server sends it compressed, though asked not to")
        found = _RANGE.fullmatch(answer.getheader("Content-Range", "").strip())
        if found is None or int(found[1]) != offset or not 0 <= int(found[2]) - offset < count:
            raise CheckpointError(
                f"{self.place}: the server answers with other bytes than it was asked for "
                f"({answer.getheader('Content-Range', 'no Content-Range')[:60]!r}); download the file first"
            )
        return int(found[2]) - offset + 1, None if found[3] == "*" else int(found[3])

    def _refuse(self, answer: http.client.HTTPResponse) -> None:
        """Raise what a status other than 206 means."""
        status, moved = answer.status, self._final != self._url
        if moved and status in (401, 403, 404, 410):  # a signed address that has run out
            self._final = self._url
            raise Trouble(f"the address it led to is no longer good (HTTP {status})", 0.0)
        if status in _PASSING:
            raise Trouble(f"the server answers {_status(status)}", _pause(answer.getheader("Retry-After")))
        if status == HTTPStatus.OK:
            raise CheckpointError(
                f"{self.place}: the server sends only whole files, not parts of them; download it first"
            )
        if status in (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, HTTPStatus.PRECONDITION_FAILED):
            raise changed(self.place)
        advice = _ADVICE.get(status, "the server answers")
        hub = "; see 'hf auth login', and its page for terms to accept" if status in (401, 403) else ""
        hub = hub if self.place.scheme == "hf" else ""
        raise CheckpointError(f"{self.place}: {advice} ({_status(status)}){hub}")

    @contextlib.contextmanager
    def _answer(self, offset: int, count: int):  # type: ignore[no-untyped-def]
        """Ask for bytes, following redirects; the connection is kept only when the answer is read whole."""
        url, first = self._final, not self._met
        for _ in range(_HOPS):
            answer = self._ask(url, offset, count, first)
            try:
                leads = answer.getheader("Location") if answer.status in (301, 302, 303, 307, 308) else None
                if not leads:
                    self._final, self._met = url, True
                    yield answer
                    return
                url = _followed(self.place, url, leads)
            finally:
                if not answer.isclosed():
                    self._connections.drop()
        raise CheckpointError(f"{self.place}: the server sends from one address to the next without end")

    def _ask(self, url: str, offset: int, count: int, first: bool) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        headers = {
            "User-Agent": f"convert_to_quant/{VERSION}",
            "Accept-Encoding": "identity",
            **self._headers(url),
            "Range": f"bytes={offset}-{offset + count - 1}",
        }
        try:
            connection, target = self._connections.to(parts)
            was_open = connection.sock is not None
            try:
                connection.request("GET", target, headers=headers)
                return connection.getresponse()
            except _LEFT_IDLE:
                if not was_open:
                    raise
                connection.close()
                connection.request("GET", target, headers=headers)
                return connection.getresponse()
        except (ValueError, http.client.InvalidURL) as e:
            raise CheckpointError(f"{self.place}: is no address that can be asked for: {e}") from None
        except (OSError, http.client.HTTPException) as e:
            self._connections.drop()
            if first and isinstance(e, _FOR_GOOD):
                raise CheckpointError(
                    f"{self.place}: {parts.hostname} cannot be reached: {_reason(e)}"
                ) from None
            raise Trouble(f"no answer from {parts.hostname} ({_reason(e)})") from None

    def disconnect(self) -> None:
        """See `RangeSource.disconnect`."""
        self._connections.close()


_ADVICE = {
    401: "is not to be read without logging in",
    403: "is not to be read with these credentials",
    404: "no such file there",
    410: "no such file there any more",
}


def _followed(place: RemoteFile, url: str, leads: str) -> str:
    """Return where a redirect leads. CheckpointError for what is no web address, or no longer encrypted."""
    target = urljoin(url, leads)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or (scheme == "http" and url.startswith("https:")):
        raise CheckpointError(f"{place}: the server leads on to {shown(target)[:200]}, which is not followed")
    return target


def _version(answer: http.client.HTTPResponse) -> str:
    return answer.getheader("ETag") or answer.getheader("Last-Modified") or ""


def _pause(text: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for, None for none that can be read."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _status(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no byte in time"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)[:200]
