"""Where ranks wait for one another: with a limit, and told who is lost and why.

Gloo gives up on a rank that is at work elsewhere for 30 seconds, and Paddle has no setting for that. NCCL
waits without a word. So ranks meet here, over connections of their own, before they exchange anything.
"""

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

_GRACE_SECONDS = 5  # for rank 0 to tell the others who has not come
_meeting: "Meeting | None" = None
"""The meeting of this process, if there are other ranks."""


class LostRank(RuntimeError):
    """Raised where a rank has ended, or does not come to a meeting. The message tells which, and why."""


class Meeting:
    """Connections between rank 0 and each of the others.

    Args:
        rank: number of this process.
        ranks: number of processes.
        connections: by the number of the rank at the other end.
        minutes: how long one rank may let the others wait.
    """

    def __init__(self, rank: int, ranks: int, connections: Mapping[int, Connection], minutes: float) -> None:
        self._rank, self._ranks, self._connections = rank, ranks, connections
        self._minutes = minutes

    def wait(self) -> None:
        """Return when every rank has called this.

        Raises:
            LostRank: a rank has ended, or has not come in time.
        """
        self._tell("")
        if self._rank:
            self._hear()  # rank 0 is here
            self._hear(_GRACE_SECONDS)  # and so are all others
            return
        try:
            self._hear()
        except LostRank as lost:
            self._tell(str(lost))
            raise
        self._tell("")

    def leave(self, reason: str) -> None:
        """Tell the ranks that wait for this one, now or later, that it ends and why."""
        self._tell(f"rank {self._rank} of {self._ranks} has ended: {reason}")

    def _tell(self, text: str) -> None:
        for connection in self._connections.values():
            with suppress(OSError):  # it has ended, which `_hear` finds
                connection.send(text)

    def _hear(self, grace: float = 0.0) -> None:
        """Receive a text from every other end. One that is not empty tells of a lost rank."""
        missing, left = dict(self._connections), 60 * self._minutes + grace
        while missing:
            # Seconds are counted one by one: those in which this process itself is suspended do not count.
            ready = wait([*missing.values()], min(1.0, left))
            left -= 0 if ready else 1
            if left <= 0:
                raise LostRank(self._told_of_absent([*missing]))
            for rank in [rank for rank, connection in missing.items() if connection in ready]:
                if told := self._received(rank):
                    raise LostRank(told)
                del missing[rank]

    def _received(self, rank: int) -> str:
        try:
            return self._connections[rank].recv()
        except (EOFError, OSError):
            return f"rank {rank} of {self._ranks} has ended or was killed"

    def _told_of_absent(self, absent: list[int]) -> str:
        who = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} of {self._ranks}"
        return (
            f"{who} let the others wait for {self._minutes:g} minutes: a process hangs, "
            "or timeout_minutes is too low for what it has to do"
        )


def begin(rank: int, ranks: int, minutes: float, gather: Callable[[Any], list[Any]]) -> None:
    """Connect rank 0 with the others. `gather` returns the values of all ranks, on every rank."""
    global _meeting
    if rank == 0:
        host, key = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0], secrets.token_bytes(16)
        with Listener((host, 0), backlog=ranks, authkey=key) as listener:
            gather((listener.address, key))
            connections = dict(_accepted(listener) for _ in range(1, ranks))
    else:
        address, key = gather(None)[0]
        connections = {0: Client(address, authkey=key)}
        connections[0].send(rank)
    for connection in connections.values():
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _meeting = Meeting(rank, ranks, connections, minutes)


def _accepted(listener: Listener) -> tuple[int, Connection]:
    connection = listener.accept()
    return connection.recv(), connection


def wait_for_all() -> None:
    """Return when every rank has called this; at once if there is one process. See `Meeting.wait`."""
    if _meeting:
        _meeting.wait()


def leave(reason: str) -> None:
    """Tell the other ranks, if there are any, why this one ends."""
    if _meeting:
        _meeting.leave(reason)
