"""The web page of a run: it needs no other file, shows what the run has, and is never a way in for a text."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import running
import toy
import yaml

from rocketqa_paddle.commands import cli
from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.data.store import Ids, Store, write_store
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.runs.folder import CONFIG, HEAD
from rocketqa_paddle.settings import RunSettings

HOSTILE = "<script>alert('x')</script> & \"more\""
VOID = {"meta", "line", "circle", "polyline", "polygon"}


class Page(HTMLParser):
    """Reads a page: its tags, its texts, and whether every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "srcset")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def report(*words: object) -> None:
    cli.main(["report", *map(str, words)])


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def hostile(finished, tmp_path):
    """A finished run whose queries and passages are HTML."""
    settings = running.copied(finished, tmp_path / "run")
    made = toy.collection()
    for name in ("dev", "test"):
        queries = made.splits[name].queries
        for id, query in queries.items():
            queries[id] = dataclasses.replace(query, text=f"{query.text} {HOSTILE}")
    for id, passage in made.passages.items():
        title, text = f"{passage.title} <b>bold", f"{passage.text} {HOSTILE}"
        made.passages[id] = dataclasses.replace(passage, title=title, text=text)
    write_store(tmp_path / "run" / "corpus", made.passages)
    return moved(settings, toy.write(tmp_path / "toy", made))


def moved(settings: RunSettings, data: Path) -> RunSettings:
    """The settings of a run whose collection is elsewhere, as they are in its folder."""
    settings = running.change(settings, "data", folder=str(data))
    config = yaml.safe_dump(dataclasses.asdict(settings))
    (Path(settings.output) / CONFIG).write_text(f"{HEAD}\n{config}")
    return settings


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    return Path(running.copied(finished, tmp_path / "run").output)


def test_a_page_needs_no_other_file_and_shows_texts_as_texts(hostile):
    run = Path(hostile.output)
    report(run, "--baseline", other_step(run))
    content, page = (run / "report.html").read_text(encoding="utf-8"), read(run / "report.html")
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "b"} & {*page.tags}
    assert not re.search(r"url\(|@import|https?:", content)
    assert HOSTILE in page.text
    assert "<b>bold" in page.text


def test_the_tables_and_curves_are_those_of_the_run(run, finished):
    report(run)
    page = read(run / "report.html")
    for line in (run / "report.md").read_text().splitlines():
        for cell in filter(None, (cell.strip(" *-") for cell in line.split("|"))):
            assert " ".join(cell.replace("**", "").split()) in page.text, cell
    assert "not finished" not in page.text
    stages = {row["stage"] for row in running.log(finished) if "loss" in row}
    assert len(stages) == 4
    for stage in stages:
        assert f"{stage}: loss" in page.text
        assert f"{stage}: learning rate" in page.text
    for setting in ("joint.steps", "retriever.pooling"):
        assert setting in page.texts
    assert "retriever.temperature" not in page.texts  # as it is by default


def best_step(run: Path) -> str:
    return json.loads((run / "best" / "steps.json").read_text())["retriever"]["step"]


def other_step(run: Path) -> str:
    return next(step for step in ("warm-up", "round-001") if step != best_step(run))


def test_queries_are_compared_with_the_baseline_that_is_asked_for(run):
    """With BM25, which knows the words, the toy's retriever loses; the ranks are those of the files."""
    report(run, "--baseline", "bm25", "--output", run / "bm25.html")
    page = read(run / "bm25.html")
    found = Candidates.load(run / best_step(run) / "hits.test.npy", Ids(run / "corpus"))
    qrels = toy.collection().splits["test"].qrels
    lost = sum(metrics.evaluate_queries(qrels, found, ["RR@10"])["RR@10"] < 1)
    assert "Won: none" in page.text
    assert (
        f"RR@10 is higher for 0 of 10 queries, lower for {lost}, and the same for {10 - lost}." in page.text
    )
    assert page.text.count("rank of the first positive 1 →") == lost
    step = other_step(run)
    report(run, "--baseline", step, "--output", run / "step.html")
    assert f"against retriever of {step} on test" in read(run / "step.html").text
    report(run, "--baseline", best_step(run), "--output", run / "same.html")
    assert "the baseline: choose another (--baseline)." in read(run / "same.html").text


def test_a_reranker_in_best_is_what_is_compared(run):
    """The toy's re-rankers never help; here the record says that one does."""
    [path, *_] = sorted(run.glob(f"*/reranked.{best_step(run)}.test.npy"))
    kept = json.loads((run / "best" / "steps.json").read_text())
    kept["reranker"] = {**kept["retriever"], "step": path.parent.name}
    (run / "best" / "steps.json").write_text(json.dumps(kept))
    report(run)
    name = f"re-ranker of {path.parent.name} over {best_step(run)} against"
    assert name in read(run / "report.html").text


def test_only_the_passages_that_are_shown_are_read(run, monkeypatch):
    rows: set[int] = set()
    texts = type(Store(run / "corpus").rows)
    original = texts._read
    monkeypatch.setattr(texts, "_read", lambda self, row: (rows.add(row), original(self, row))[1])
    report(run, "--baseline", other_step(run))
    assert 0 < len(rows) < 60


def test_a_run_that_was_stopped_gives_a_page_of_what_there_is(stopped, tmp_path):
    run = Path(running.copied(stopped, tmp_path / "run").output)
    report(run)
    page = read(run / "report.html")
    assert re.search(
        r"not finished.* It was saved in round-002 retriever and reranker, step 2 of 4\.", page.text
    )
    assert "after every step" in page.text
    assert "retriever of round-001" in page.text


def test_a_run_that_has_only_begun_gives_a_page(finished, tmp_path):
    shutil.copytree(
        finished.output,
        tmp_path / "run",
        ignore=shutil.ignore_patterns("*-*", "initial", "best", "*.md", "*.jsonl"),
    )
    report(tmp_path / "run")
    assert "No model has been measured yet." in read(tmp_path / "run" / "report.html").text


def test_data_that_are_gone_leave_the_rest(run, finished):
    moved(dataclasses.replace(finished, output=str(run)), Path("/nowhere"))
    report(run)
    page = read(run / "report.html")
    assert "Scores and queries are left out, because a file is gone: /nowhere" in page.text
    assert "warm-up retriever: loss" in page.text


def test_a_run_that_goes_on_leaves_the_page_and_the_next_page_replaces_it(run, finished):
    report(run)
    before = (run / "report.html").read_bytes()
    running.train(dataclasses.replace(finished, output=str(run)))
    assert (run / "report.html").read_bytes() == before
    (run / "report.md").unlink()
    report(run)
    assert "not finished" in read(run / "report.html").text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["RUN/nowhere"], "no such folder; expected the folder of a run"),
        (["RUN/best"], "a folder without config.yaml, so no run"),
        (["RUN", "--baseline", "step1"], "expected bm25, initial, warm-up, round-001, round-002"),
        (
            ["RUN", "--output", "RUN/metrics.jsonl"],
            "is no report that this command wrote: choose another --output",
        ),
        (["RUN", "--output", "RUN/best/page.html"], "which this command reads: choose another --output"),
        (["RUN", "--output", "RUN/best"], "a folder, expected the name of a file"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(run, capsys, words, problem):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        report(*(word.replace("RUN", str(run)) for word in words))
    assert stopped.value.code == 2
    assert problem in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_comparison_and_foreign_settings_are_refused(tmp_path, capsys):
    for content, problem in {
        "systems: {A: {system: ar2}}\n": "a comparison; its tables are in report.md",
        "colour: red\n": "not the settings of a run (without output, data or evaluation)",
        "output: x\ndata: {folder: [1], x: 2}\nevaluation: {}\n": "not the settings of a run (",
    }.items():
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(SystemExit):
            report(tmp_path)
        assert problem in capsys.readouterr().err


def test_damaged_hits_are_named(run, capsys):
    path = run / "warm-up" / "hits.dev.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit):
        report(run)
    assert f"{path}: not an array" in capsys.readouterr().err
