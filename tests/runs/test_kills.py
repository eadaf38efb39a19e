"""Runs that die at any change to the disk and go on, with the same settings or with others."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path

import pytest
import running
from kills import changes, killed_after, killed_at

from rocketqa_paddle.runs.ledger import Ledger
from rocketqa_paddle.settings import OptimizerSettings, RunSettings

SLOWER = OptimizerSettings(learning_rate=5e-4)
SYSTEMS = {
    "rocketqa": (running.rocketqa, ["step1", "step3", "step4"]),
    "pair": (running.pair, ["teacher_retriever", "finetuning"]),
    "rocketqav2": (running.rocketqav2, ["warmup_retriever", "joint"]),
    "ar2": (running.ar2, ["warmup_reranker", "adversarial.retriever"]),
}
"""The settings of every system, and sections whose learning rate may change."""


def begin(system: str, data: Path, folder: Path, section: str | None) -> RunSettings:
    """Settings that save the state after every step, with another learning rate in a section."""
    settings = SYSTEMS[system][0](folder, data, save_minutes=0.0)
    return running.change(settings, section, optimizer=SLOWER) if section else settings


def check_deaths(system: str, data: Path, folder: Path, deaths: int, seed: int) -> None:
    """Kill runs of a system and let them go on; demand of each what a run without a death gives."""
    draw, sections = random.Random(seed), [None, *SYSTEMS[system][1]]
    expected, total = {}, 0
    for section in sections:
        whole = begin(system, data, folder / f"whole-{section}", section)
        total = changes(lambda whole=whole: running.train(whole))
        expected[section] = running.outcome(whole)
    for number in range(deaths):
        run = folder / str(number)
        first, last = draw.choice(sections), draw.choice(sections)
        last = last if number % 2 else first
        for section in (first, last):
            settings = begin(system, data, run, section)
            if draw.random() < 0.7:
                killed_at(draw.randrange(total), lambda settings=settings: running.train(settings))
            else:
                killed_after(2 * draw.random(), lambda settings=settings: running.train(settings))
        settings = begin(system, data, run, last)
        running.train(settings)
        told = f"{system}, death {number}, first with {first}, then with {last}"
        found = running.outcome(settings)
        differ = {key for key in found.keys() | expected[last] if found.get(key) != expected[last].get(key)}
        assert not differ, (told, sorted(differ), run)
        beside = {path.name for path in folder.iterdir() if not path.name.startswith("whole-")}
        assert beside == {str(n) for n in range(number + 1)}, told


@pytest.mark.parametrize("system", ["rocketqav2", "ar2"])
def test_a_run_that_dies_ends_as_one_that_does_not(data, tmp_path, system):
    check_deaths(system, data, tmp_path, deaths=4, seed=1)


@pytest.mark.fuzz
@pytest.mark.parametrize("system", SYSTEMS)
def test_no_death_of_very_many_does_harm(data, tmp_path, system):
    check_deaths(system, data, tmp_path, deaths=50, seed=2)


def test_runs_that_a_walk_no_longer_names_are_removed(data, tmp_path):
    settings = running.rocketqav2(tmp_path / "run", data)
    running.train(settings)
    assert len(list((tmp_path / "run").glob("*/scored.*.npy"))) == 2
    undenoised = running.change(settings, "joint.groups", sources=["random"])
    running.train(undenoised)
    alone = dataclasses.replace(undenoised, output=str(tmp_path / "alone"))
    running.train(alone)
    assert running.outcome(undenoised) == running.outcome(alone)


def test_a_death_while_runs_are_removed_leaves_none_behind(data, tmp_path):
    settings = running.rocketqav2(tmp_path / "run", data)
    running.train(settings)

    def clean(folder: Path) -> None:
        ledger = Ledger(folder)
        ledger._step("round-001")
        ledger.drop_others()  # nothing has been named, so all runs are to go

    for change in itertools.count():
        folder = Path(running.copied(settings, tmp_path / str(change)).output)
        died = killed_at(change, lambda folder=folder: clean(folder))
        clean(folder)
        assert not list((folder / "round-001").glob("*.tsv"))
        assert not list((folder / "round-001").glob("*.npy"))
        if not died:
            break
    assert change > 3


def test_files_of_the_users_are_never_lost(data, tmp_path):
    """A step that is to be done again, or a `best/` to be replaced, refuses before any work."""
    settings = running.rocketqav2(tmp_path / "run", data)
    running.train(settings)
    changed = running.change(settings, "joint", optimizer=SLOWER)
    for place in ("round-001/retriever/notes.txt", "best/index/dev.run"):
        path = tmp_path / "run" / place
        path.write_text("mine")
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(ValueError, match=f"{path.name}, which would be"),
        ):
            running.forbid(patch, running.NETWORKS)
            running.train(changed)
        path.unlink()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "round-001" / "notes.txt").write_text("mine")
    running.train(changed)
    for place in ("notes.txt", "round-001/notes.txt"):
        assert (tmp_path / "run" / place).read_text() == "mine"
