"""Runs that are made once a session; a test that changes one copies it."""

from __future__ import annotations

import pytest
import running
import toy

from rocketqa_paddle import losses


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The settings of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    settings = running.rocketqav2(folder / "run", toy.write(folder / "toy"))
    running.train(settings)
    return settings


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The settings of a run that was stopped in its last training, whose state is saved."""
    folder = tmp_path_factory.mktemp("stopped")
    settings = running.rocketqav2(folder / "run", toy.write(folder / "toy"))
    stop = running.stop_at(losses, "joint_distillation", 6)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(stop(patch)):
        running.train(settings)
    return settings
