"""What commands write: never one of their inputs, told before any work, and whole after a death."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run, words
from kills import killed_at

from rocketqa_paddle.networks import forward


@pytest.fixture
def place(best, data, a_run, tmp_path, monkeypatch):
    """A folder to work in, with copies of all inputs, in which no network computes anything."""
    shutil.copytree(best, tmp_path / "best")
    shutil.copytree(data, tmp_path / "data")
    shutil.copy(a_run, tmp_path / "dev.run")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "dev.query.txt")
    os.link(tmp_path / "dev.run", tmp_path / "hard.run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forward, "_infer", lambda *_: pytest.fail("it was computed"))
    return tmp_path


TEXTS = {"queries": "data/dev.query.txt", "passages": "data/para.txt", "titles": "data/para.title.txt"}
COMMANDS = {
    "rerank": {"checkpoint": "best/reranker", "run": "dev.run", **TEXTS},
    "search": {"checkpoint": "best", "queries": "data/dev.query.txt"},
    "mine": {"policy": "random", "qrels": "data/qrels.dev.tsv", **TEXTS},
    "encode": {"checkpoint": "best/retriever", "input": "data/dev.query.txt", "kind": "queries"},
}
READ = [
    *(("rerank", output) for output in ("dev.run", "hard.run", "link", *TEXTS.values())),
    ("rerank", "best/reranker/new.tsv"),
    *(("search", output) for output in ("data/../data/dev.query.txt", "link", "best/index/ids.txt")),
    *(("mine", output) for output in ("data/qrels.dev.tsv", "data/para.txt", "./link")),
    ("encode", "best/retriever/vectors"),
]


@pytest.mark.parametrize(("command", "output"), READ)
def test_what_a_command_reads_is_not_overwritten(place, fails, command, output):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    message = fails(command, *words(**COMMANDS[command], output=output))
    assert "which this command reads: choose another --output" in message
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_the_folder_that_a_command_works_in_is_no_exception(place, fails, monkeypatch):
    """A model or a search engine that is named by a dot."""
    monkeypatch.chdir(place / "best")
    ids = (place / "best" / "index" / "ids.txt").read_bytes()
    flags = words(checkpoint=".", queries=place / "data" / "dev.query.txt", output="index/ids.txt")
    assert "lies in ., which this command reads: choose another --output" in fails("search", *flags)
    assert (place / "best" / "index" / "ids.txt").read_bytes() == ids


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("data/", "a folder, expected the name of a file to write"),
        ("dev.run/x", "could not be written"),
        ("x" * 300, "could not be written"),
        ("circle", "a link that leads to itself"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_told_before_any_work(place, fails, command, output, problem):
    for name in ("circle", "circle.npy"):
        (place / name).symlink_to(name)
    before = sorted(place.rglob("*"))
    assert problem in fails(command, *words(**COMMANDS[command], output=output))
    assert sorted(place.rglob("*")) == before


def test_an_output_that_is_a_link_is_followed(best, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "vectors.npy").symlink_to("other/vectors.npy")
    flags = {"checkpoint": best / "retriever", "input": data / "dev.query.txt", "kind": "queries"}
    run("encode", *words(**flags, output="vectors"))
    assert (tmp_path / "vectors.npy").is_symlink()
    assert np.load("other/vectors.npy").shape == (10, 16)


def test_a_death_leaves_no_ids_beside_the_vectors_of_others(best, data, tmp_path):
    """The second input has the same queries in another order."""
    queries = (data / "dev.query.txt").read_text().splitlines(keepends=True)
    turned = tmp_path / "turned.txt"
    turned.write_text("".join(reversed(queries)))
    outcomes = {}
    for name, file in {"first": data / "dev.query.txt", "second": turned}.items():
        flags = {"checkpoint": best / "retriever", "input": file, "kind": "queries"}
        run("encode", *words(**flags, output=tmp_path / name))
        outcomes[(tmp_path / f"{name}.npy").read_bytes()] = (tmp_path / f"{name}.ids.txt").read_text()
    for change in itertools.count():
        for kind in ("npy", "ids.txt"):
            shutil.copy(tmp_path / f"first.{kind}", tmp_path / f"again.{kind}")
        died = killed_at(change, lambda: run("encode", *words(**flags, output=tmp_path / "again")))
        ids = Path(tmp_path / "again.ids.txt")
        if ids.exists():
            assert outcomes[(tmp_path / "again.npy").read_bytes()] == ids.read_text()
        if not died:
            break
    assert change > 5


@pytest.mark.parametrize(
    ("command", "more", "problem"),
    [
        ("search", {"reranker": ""}, "--reranker is empty: give a name, or leave the flag out"),
        ("encode", {"titles": "data/para.title.txt"}, "--titles is for passages, but --kind is queries"),
        ("encode", {"input": "d\udcff"}, "is not UTF-8: rename the file, or correct the flag"),
    ],
)
def test_flags_that_would_be_ignored_or_cannot_be_read(place, fails, command, more, problem):
    assert problem in fails(command, *words(**(COMMANDS[command] | more), output="out"))


def test_a_run_without_hits_is_not_reranked(place, fails):
    (place / "empty.run").write_text("")
    (place / "old.run").write_text("kept")
    message = fails("rerank", *words(**(COMMANDS["rerank"] | {"run": "empty.run"}), output="old.run"))
    assert "empty" in message
    assert (place / "old.run").read_text() == "kept"
