"""Ranks wait for one another, with a limit, and are told who is lost and why."""

from __future__ import annotations

import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import nets
import pytest
import ranks

from rocketqa_paddle.data.corpus import StoredCorpus
from rocketqa_paddle.data.places import Place
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.meeting import LostRank, Meeting

SOON = 0.01  # minutes


@pytest.fixture
def three():
    """The meetings of three ranks, in one process."""
    pipes = {rank: Pipe() for rank in (1, 2)}
    first = Meeting(0, 3, {rank: ends[0] for rank, ends in pipes.items()}, SOON)
    return [first, *(Meeting(rank, 3, {0: ends[1]}, SOON) for rank, ends in pipes.items())]


def lost(meetings: list[Meeting]) -> list[str]:
    """What each of these ranks is told when all of them wait."""

    def told(meeting: Meeting) -> str:
        with pytest.raises(LostRank) as error:
            meeting.wait()
        return str(error.value)

    with ThreadPoolExecutor(len(meetings)) as threads:
        return list(threads.map(told, meetings))


@pytest.mark.parametrize("last", range(3))
def test_nobody_goes_on_before_all_have_come(three, last):
    gone_on = []

    def meet(rank: int) -> None:
        for _ in range(3):
            three[rank].wait()
            gone_on.append(rank)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3) if rank != last]
    for thread in threads:
        thread.start()
        thread.join(0.1)
    assert not gone_on
    meet(last)
    for thread in threads:
        thread.join()
    assert sorted(gone_on) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("absent", range(3))
def test_all_are_told_who_does_not_come(three, absent):
    told = lost([three[rank] for rank in range(3) if rank != absent])
    assert all(text.startswith(f"rank {absent} of 3 let the others wait for 0.01 minutes") for text in told)


@pytest.mark.parametrize("dead", range(3))
def test_all_are_told_who_has_ended(three, dead):
    for connection in three[dead]._connections.values():
        connection.close()
    told = lost([three[rank] for rank in range(3) if rank != dead])
    assert set(told) == {f"rank {dead} of 3 has ended or was killed"}


@pytest.mark.parametrize("leaving", range(3))
def test_all_are_told_why_a_rank_ends(three, leaving):
    three[leaving].leave("no space left")
    told = lost([three[rank] for rank in range(3) if rank != leaving])
    assert set(told) == {f"rank {leaving} of 3 has ended: no space left"}


def hang_in(rank: int) -> None:
    distributed.init(timeout_minutes=0.03)
    distributed.barrier()
    if distributed.rank() == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.any_rank(True)


@pytest.mark.parametrize("hanging", [0, 3])
def test_a_rank_that_hangs_ends_the_others(tmp_path, hanging):
    ends = ranks.fork(4, lambda: hang_in(hanging), tmp_path)
    assert ends.pop(hanging).code == -signal.SIGKILL
    for code, printed in ends:
        assert code == 1
        told = f"rocketqa: rank {hanging} of 4 let the others wait for 0.03 minutes"
        assert told in printed
        assert "the same command goes on from what was saved" in printed


def mistake(folder) -> None:
    """Read a corpus in which rank 0, which alone reads it, finds a mistake."""
    distributed.init()

    def read(_):
        raise Place(folder / "collection.tsv", 3).wrong("not UTF-8")
        yield

    (folder / "collection.tsv").touch()
    StoredCorpus(folder / "corpus", [folder / "collection.tsv"], read)


def diverge(folder) -> None:
    """Train to a loss that is not finite on one rank alone."""
    distributed.init()
    trained = nets.make_nets()
    loss = nets.squared(trained)

    def diverging(batch):
        values = loss(batch)
        return {**values, "loss": values["loss"] * math.nan} if distributed.rank() == 2 else values

    nets.make_trainer(folder, trained, diverging).fit()


@pytest.mark.parametrize(
    ("work", "number", "text"),
    [
        (mistake, 0, "collection.tsv:3: not UTF-8"),
        (diverge, 2, "training, step 1: the loss is nan; lower the learning rate"),
    ],
)
def test_an_error_on_one_rank_ends_the_others_with_its_message(tmp_path, work, number, text):
    ends = ranks.fork(4, lambda: work(tmp_path), tmp_path)
    failed = ends.pop(number)
    assert failed.code == 2
    assert text in failed.printed
    for code, printed in ends:
        assert code == 1
        assert f"rocketqa: rank {number} of 4 has ended: " in printed
        assert text in printed
        assert "Traceback" not in printed
