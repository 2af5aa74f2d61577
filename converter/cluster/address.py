"""Addresses of Ray clusters, looked at before Ray is asked: it takes minutes to find that nobody answers."""

from __future__ import annotations

import os
import socket

from ...formats.errors import ConversionError

LOCAL = "local"
"""A cluster on this machine that begins and ends with the run."""

AUTO = "auto"
"""The cluster that runs on this machine."""

_TIMEOUT = 5.0
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2, and so of gRPC, begins: the preface and empty settings (RFC 9113, 3.4)."""

_HEADER = 9
_SETTINGS = 4


def asked_address(given: str | None) -> str:
    """Return where the cluster is: as given, as RAY_ADDRESS says, or LOCAL; ConversionError if wrong."""
    address = given or os.environ.get("RAY_ADDRESS") or LOCAL
    if address in (LOCAL, AUTO):
        return address
    if "://" in address:
        raise ConversionError(
            f"--ray {address}: Ray Client is not supported: run this on a node of the cluster with --ray auto"
        )
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ConversionError(
            f"--ray {address}: must be HOST:PORT of a cluster's head (ray start prints it), auto or local"
        )
    return address


def require_answer(address: str) -> None:
    """Raise ConversionError where no gRPC server, which a cluster's head is, answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT) as connection:
            connection.sendall(_HELLO)
            connection.settimeout(_TIMEOUT)
            header = b""
            while len(header) < _HEADER and (more := connection.recv(_HEADER - len(header))):
                header += more
    except OSError as e:
        reason = "no answer" if isinstance(e, TimeoutError) else e.strerror or str(e)
        raise ConversionError(
            f"--ray {address}: {reason}; is the cluster's head running there (ray start --head)?"
        ) from e
    if len(header) < _HEADER or header[3] != _SETTINGS:
        raise ConversionError(f"--ray {address}: what answers there is no head of a Ray cluster")
