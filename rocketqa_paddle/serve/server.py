"""The server: a socket, uvicorn, and an end that lets requests finish."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

_DRAIN_SECONDS = 30


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
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    _Server(config, ready).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Tells when clients can connect."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self._ready()
