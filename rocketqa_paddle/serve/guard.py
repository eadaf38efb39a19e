"""What stands before every request: keys, and the bounds of a body."""

from __future__ import annotations

import hmac
from pathlib import Path

import anyio
import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rocketqa_paddle.data.tables import missing
from rocketqa_paddle.serve.errors import Refused, family_of, shaped

OPEN_PATHS = ("/", "/health", "/ping", "/metrics")
"""What is read without a key: the page, which asks for one, and what machines look at."""
_BODY_SECONDS = 60.0


def read_keys(file: str | Path) -> list[bytes]:
    """Read the keys that clients may send, one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no key, or one with other characters than those of a header.
    """
    keys = [line.strip() for line in _content(Path(file)).splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"{file}: no key in it, expected one a line")
    if not all(0x21 <= byte <= 0x7E for key in keys for byte in key):
        raise ValueError(
            f"{file}: a key with spaces or other characters than visible ASCII, which no header can have"
        )
    return keys


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise missing(file)
    return file.read_bytes()


class Guard:
    """Refuses requests without a key and bodies that are too long or too slow; an ASGI middleware.

    Args:
        app: what answers the others.
        keys: the keys that are accepted; without any, none is needed.
        limit: bytes of a body.
    """

    def __init__(self, app: ASGIApp, keys: list[bytes], limit: int) -> None:
        self._app, self._keys, self._limit = app, keys, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on with its whole body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            body = await self._read(receive)
        except Refused as refused:
            status, content = shaped(family_of(scope["path"]), refused)
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            headers += [(b"www-authenticate", b"Bearer")] * (status == 401)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": orjson.dumps(content)})
            return
        if body is not None:
            await self._app(scope, _replaying(body, receive), send)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        is_open = scope["path"] in OPEN_PATHS and scope["method"] in ("GET", "HEAD")
        if self._keys and not is_open:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
            if scheme.lower() != b"bearer" or not any(matches):
                raise Refused("Unauthorized", "no valid key: send the header Authorization: Bearer KEY")
        if b"content-length" in headers and b"transfer-encoding" in headers:  # proxies may believe the other
            raise Refused("Validation", "a body with two lengths: leave out Content-Length", status=400)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            raise self._too_long()

    async def _read(self, receive: Receive) -> bytes | None:
        """Read a body; None if the client goes before its end."""
        parts, size = [], 0
        try:
            with anyio.fail_after(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limit:
                        raise self._too_long()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            message = f"the body took more than {_BODY_SECONDS:.0f} seconds"
            raise Refused("Validation", message, status=408) from None

    def _too_long(self) -> Refused:
        message = f"a body of more than {self._limit} bytes: send several requests"
        return Refused("Validation", message, status=413)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
