"""Runs that search with another kind of index than the exact one, and what changes when it is set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import running
import yaml
from running import change, train

from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.search import index
from rocketqa_paddle.search.folder import IndexFolder

EVERY_LIST = {"factory": "IVF4,Flat", "parameters": "nprobe=4"}
"""An index that compares every vector as well, in another order."""


@pytest.fixture(scope="module")
def by_lists(finished, tmp_path_factory):
    """The settings of the finished run again, with another kind of index."""
    settings = change(
        running.begun(finished, tmp_path_factory.mktemp("lists") / "run"), "index", **EVERY_LIST
    )
    train(settings)
    return settings


def kind_of(settings) -> dict:
    return json.loads((Path(settings.output) / "best" / "index" / "meta.json").read_text()).get("index", {})


def test_a_run_searches_with_the_index_that_is_set(finished, by_lists):
    """Where the index misses nothing, the run is the same, bit for bit."""
    assert running.digests(by_lists) == running.digests(finished)
    for path in Path(finished.output).rglob("hits.dev.npy"):
        other = Path(by_lists.output) / path.relative_to(finished.output)
        assert path.read_bytes() == other.read_bytes()
    assert (kind_of(finished), kind_of(by_lists)) == ({}, {**EVERY_LIST, "candidates": None})
    report = running.text(by_lists, "report.md")
    assert report.count("Retrievers search by IVF4,Flat, which may miss passages.") == 1
    running.check_best(by_lists)


def test_a_stopped_run_goes_on(by_lists, tmp_path):
    running.check_again(running.copied(by_lists, tmp_path / "again"))
    running.check_stop(by_lists, tmp_path / "stopped", running.kill_before(Run, "_save", 3))


def test_a_missed_passage_leaves_room_and_the_run_goes_on(finished, tmp_path):
    """A list of four has fewer passages than are asked for."""
    settings = running.begun(finished, tmp_path / "run")
    settings = change(settings, "index", factory="IVF4,Flat", parameters="nprobe=1")
    train(settings, until_stage="warm-up")
    rows = np.load(tmp_path / "run" / "warm-up" / "hits.dev.npy")["row"]
    counts = (rows >= 0).sum(axis=1)
    assert 0 < counts.min() < rows.shape[1]
    assert all((row[:count] >= 0).all() for row, count in zip(rows, counts, strict=True))


def test_an_index_is_built_once_for_the_search_and_for_best(finished, tmp_path, monkeypatch):
    built, build = [], index._build
    monkeypatch.setattr(index, "_build", lambda *given: built.append(given) or build(*given))
    settings = change(running.begun(finished, tmp_path / "run"), "index", factory="HNSW16")
    train(settings, until_stage="warm-up")
    assert len(built) == len(list(Path(settings.output).rglob("hits.dev.npy"))) == 2
    assert kind_of(settings)["factory"] == "HNSW16"


def test_another_kind_is_another_search_and_a_run_from_before_the_setting_goes_on(
    finished, by_lists, tmp_path
):
    told = running.reasons(change(finished, "index", **EVERY_LIST))
    assert told["initial"] == ["index changed"]
    assert (
        "index.parameters was nprobe=4, is now nprobe=3"
        in running.reasons(change(by_lists, "index", parameters="nprobe=3"))["warm-up"]
    )
    before = running.copied(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    assert values.pop("index") == {"factory": "Flat", "parameters": "", "candidates": None}
    config.write_text(yaml.safe_dump(values))
    for path in Path(before.output).rglob("step.json"):
        assert not any(
            name.startswith("index") for made in json.loads(path.read_text()).values() for name in made
        )
    running.check_again(before)
    assert "index" in yaml.safe_load(config.read_text())


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        ({"factory": "HNSV16"}, 1, "index.factory 'HNSV16': faiss knows no such index of 16 dimensions"),
        ({"factory": "PQ5x4"}, 1, "index.factory 'PQ5x4': .*should be a multiple of the number of subquant"),
        ({"factory": "HNSW8", "parameters": "nprobe=2"}, 1, "index.parameters 'nprobe=2' do not fit"),
        ({"factory": "IVF61,Flat"}, 1, "of 60 vectors of 16 dimensions .it has 61 lists"),
        ({"factory": "PQ8"}, 1, "of 60 vectors of 16 dimensions .its PQ has 256 centroids"),
        ({"factory": "IVF40,Flat"}, 2, "of 30 vectors .*each of 2 processes searches its part of the corpus"),
    ],
)
def test_a_mistake_is_told_before_any_work(data, tmp_path, monkeypatch, kind, ranks, message):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    settings = change(running.ar2(tmp_path / "run", data), "index", **kind)
    made = Run(change(settings, "", output=str(tmp_path / "dry")))
    with pytest.raises(ValueError, match=message):
        made.rehearse(running.system_of(settings).having(settings))
    assert not list(tmp_path.rglob("step.json"))


def test_a_mistake_about_a_network_from_scratch_is_told_before_its_vocabulary_is_trained(data, tmp_path):
    settings = running.ar2(tmp_path / "run", data, **running.from_scratch(data))
    with pytest.raises(ValueError, match="faiss knows no such index of 64 dimensions"):
        train(change(settings, "index", factory="PQ5x4"))
    assert not (tmp_path / "run" / "vocabulary").exists()


def test_best_gets_its_bm25_when_that_is_asked_for(finished, tmp_path):
    settings = running.copied(finished, tmp_path / "run")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("hits.*.npy")}
    settings = change(settings, "evaluation", bm25=True)
    for _ in range(2):  # the second time, it is damaged
        train(settings)
        folder = IndexFolder(tmp_path / "run" / "best" / "index")
        vectors = np.ones((1, 16), np.float32)
        assert [len(side["q"]) for side in folder.both(["q"], vectors, ["passage 7"], 5)][0] == 5
        next((tmp_path / "run" / "best" / "index" / "bm25").glob("data*")).write_bytes(b"")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("hits.*.npy")}
