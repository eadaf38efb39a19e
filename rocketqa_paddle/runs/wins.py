"""Queries that the search engine of a run answers better than a baseline, and worse, as a part of a page."""

from collections.abc import Mapping
from html import escape

from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.evaluation import examples, html
from rocketqa_paddle.evaluation.examples import Example
from rocketqa_paddle.records import Model, positives
from rocketqa_paddle.runs.archive import Archive, Piece, label
from rocketqa_paddle.runs.artefacts import INITIAL
from rocketqa_paddle.search.bm25 import bm25
from rocketqa_paddle.settings import need_bm25s

BM25 = "bm25"
"""The baseline that is no step of the run."""
_EXAMPLES, _PASSAGES, _CHARACTERS = 10, 3, 300
"""Queries of a kind, passages of a side, and characters of a passage that are shown."""


def check_baseline(run: Archive, baseline: str | None) -> None:
    """Refuse a baseline that the run does not have.

    Raises:
        ValueError: names those that it has.
    """
    if baseline == BM25:
        need_bm25s("baseline=bm25")
    elif baseline is not None and baseline not in (steps := _retrievers(run)):
        there = ", ".join([BM25, *steps])
        raise ValueError(f"baseline={baseline}: not a retriever that the run has measured, expected {there}")


def _retrievers(run: Archive) -> list[str]:
    """The steps whose retrievers were measured."""
    return list(dict.fromkeys(piece.step for piece in run.pieces if piece.kind is Model.RETRIEVER))


def wins_and_losses(run: Archive, baseline: str | None) -> str:
    """Compare what is in `best/` with a baseline, on the first test that was searched, or else on dev.

    Args:
        run: the run.
        baseline: a step whose retriever was measured, or `bm25`, which reads the whole corpus; when None, the
            initial checkpoint, or the first such step where that was not measured.
    """
    best, steps = run.best(), _retrievers(run)
    if not steps:
        return ""
    retriever, reranker = best.get(Model.RETRIEVER, steps[-1]), best.get(Model.RERANKER)
    baseline = baseline or (INITIAL if INITIAL in steps else steps[0])
    for name in (*run.data.tests, run.data.dev):
        ours = (reranker and run.find(retriever, name, reranker)) or run.find(retriever, name)
        theirs = None if baseline == BM25 else run.find(baseline, name)
        if ours and ours == theirs:
            told = f"The best retriever on {run.data.dev} is that of {baseline}, the baseline: choose another"
            return html.section("Queries", f"<p>{escape(told)} (--baseline).</p>")
        if ours and (theirs or baseline == BM25):
            return _compared(run, run.queries(name), ours, theirs)
    return html.section("Queries", f"<p>There is nothing yet to compare with {escape(baseline)}.</p>")


def _compared(run: Archive, queries: QuerySet, ours: Piece, theirs: Piece | None) -> str:
    """Both kinds of queries; `theirs` is None for BM25."""
    found, measure = run.hits(ours), run.evaluation.measures[0]
    other = run.hits(theirs) if theirs else bm25(run.corpus, queries.queries, found.depth)
    sides = {label(ours): found, label(theirs) if theirs else "BM25": other}
    compared = examples.differences(queries.qrels, found, other, measure)
    better, worse = (sum(sign * example.difference > 0 for example in compared) for sign in (1, -1))
    told = (
        f"{' against '.join(sides)} on {queries.name}: {measure} is higher for {better} of {len(compared)} "
        f"queries, lower for {worse}, and the same for {len(compared) - better - worse}."
    )
    parts = [f"<p>{escape(told)}</p>"]
    for title, chosen in {
        "Won": examples.won(compared, _EXAMPLES),
        "Lost": examples.lost(compared, _EXAMPLES),
    }.items():
        parts.append(f"<h3>{title}{', the largest differences first' if chosen else ': none'}</h3>")
        for number, example in enumerate(chosen):
            columns = _columns(run, example, sides, positives(queries.qrels, example.query_id))
            ranks = " → ".join(_rank(rank) for rank in (example.baseline_rank, example.rank))
            ranks = f"{measure} {example.difference:+.3f}, rank of the first positive {ranks}"
            query = escape(queries.queries[example.query_id].text)
            summary = f'{query} <span class="ranks">({escape(ranks)})</span>'
            parts.append(html.details(summary, columns, opened=not number))
    return html.section("Queries won and lost", *parts)


def _rank(rank: int | None) -> str:
    return str(rank) if rank else "none"


def _columns(run: Archive, example: Example, sides: Mapping[str, Candidates], relevant: list[str]) -> str:
    """The first passages of both sides, and a positive if neither has one there."""
    columns = {
        name: [h.passage_id for h in hits[example.query_id][:_PASSAGES]] for name, hits in sides.items()
    }
    if not any(id in relevant for ids in columns.values() for id in ids):
        columns["a positive"] = relevant[:1]
    shown = (
        f"<div><h4>{escape(name)}</h4>{_passages(run, ids, relevant)}</div>" for name, ids in columns.items()
    )
    return f'<div class="sides">{"".join(shown)}</div>'


def _passages(run: Archive, ids: list[str], relevant: list[str]) -> str:
    if not ids:
        return "<p>nothing found</p>"
    return f"<ol>{''.join(_passage(run, id, id in relevant) for id in ids)}</ol>"


def _passage(run: Archive, id: str, is_positive: bool) -> str:
    passage = run.corpus[id]
    more = "…" * (len(passage.text) > _CHARACTERS)
    text = escape(passage.text[:_CHARACTERS]) + more
    title = f"<strong>{escape(passage.title)}</strong> " if passage.title else ""
    kind, tag = (' class="positive"', '<span class="tag">positive</span> ') if is_positive else ("", "")
    return f"<li{kind}>{tag}{title}{text}</li>"
