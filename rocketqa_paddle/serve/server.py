"""The server: a socket, uvicorn, and an end that lets requests finish."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

_DRAIN_SECONDS = 30
_IDLE_SECONDS = 60.0
"""How long a connection may go without a whole request, or without its client reading the answer."""


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, before any model is read; port 0 takes a free one.

    Raises:
        ValueError: there is no such port.
        OSError: the address is taken or none of this machine's.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"port {port}, expected one from 1 to 65535, or 0 for a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; its connections inherit it
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_IDLE_SECONDS * 1000))
        made.bind(address)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen at {host}, port {port} ({error}): choose others with --host, --port"
        ) from None
    return made


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(bound: socket.socket) -> str:
    """The address of a socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, bound: socket.socket, ready: Callable[[], object]) -> None:
    """Serve until SIGTERM or Ctrl-C; then take no more requests, and answer those that are there.

    `ready` is called once clients can connect. At the end uvicorn raises the signal again.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http=_Connection,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    _Server(config, ready).run(sockets=[bound])


class _Connection(H11Protocol):
    """A connection that is closed when it holds nothing but the beginning of a request for too long.

    uvicorn waits for the rest for ever. Of its two parsers this is the one that bounds the headers, and that
    reads the bodies of clients that offer HTTP/2 as well, such as Java's.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to look after a connection."""
        super().connection_made(transport)
        self._look_later(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End to look after it."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def _look_later(self, last: object) -> None:
        self._next_look = self.loop.call_later(_IDLE_SECONDS, self._look, last)

    def _look(self, last: object) -> None:
        """Close it if the last request is the one of the last look, and was answered by then."""
        is_answered = self.cycle is None or self.cycle.response_complete
        if is_answered and self.cycle is last:
            self.transport.close()
        else:
            self._look_later(self.cycle if is_answered else self)


class _Server(uvicorn.Server):
    """Tells when clients can connect."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self._ready()
