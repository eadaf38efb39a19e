"""A run that goes on with another number of ranks than it began with."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import ranks
import running
from running import change, train

from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.training.trainer import Trainer


@pytest.fixture
def killed(data, tmp_path):
    """Settings of a run on four ranks, one of which was killed in the third step of a training."""
    settings = running.rocketqav2(tmp_path / "run", data, save_minutes=0.0)
    settings = change(settings, "joint", rounds=1)
    for section in ("warmup_retriever", "warmup_reranker", "joint"):
        settings = change(settings, section, batch_size=1)
    ends = ranks.fork(4, lambda: _train_and_die(settings), tmp_path)
    assert [end.code for end in ends] == [1, 1, -signal.SIGKILL, 1]
    told = "rocketqa: rank 2 of 4 has ended or was killed, so rank 1 ends as well; the same command goes on"
    assert told in ends[1].printed
    return settings


def _train_and_die(settings):
    take_step = Trainer._take_step

    def step(trainer):
        if trainer.name.startswith("round-001") and (trainer.step, distributed.rank()) == (2, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(trainer)

    Trainer._take_step = step
    train(settings)


def test_finished_steps_stay_and_an_unfinished_training_begins_anew(killed, tmp_path):
    before, clean = running.digests(killed), dataclasses.replace(killed, output=str(tmp_path / "clean"))
    assert len(before) == 2
    shutil.copytree(killed.output, clean.output)
    shutil.rmtree(Path(clean.output) / "last")
    for settings, anew in ((killed, True), (clean, False)):
        ends = ranks.fork(2, lambda settings=settings: train(settings), tmp_path)
        assert [end.code for end in ends] == [0, 0], ends[0].printed
        told = "2 of its steps were taken by 4 processes and now there are 2: this training begins anew"
        assert (told in ends[0].printed) == anew
        assert "warm-up: it was done by 4 processes, now by 2" in ends[0].printed
    after = running.digests(killed)
    assert after.items() > before.items()
    assert after == running.digests(clean)
    assert running.logged(killed) == running.logged(clean)
    running.check_best(killed)
