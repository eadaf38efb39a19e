"""Runs: files of what a retriever or re-ranker found for each query, as TREC or the reference writes them."""

import math
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Literal

from rocketqa_paddle.data.tables import Columns, FilePath, Place, table, write_lines
from rocketqa_paddle.records import Hit, Qrels, Run, positives

RunFormat = Literal["tsv", "trec"]

TSV: Columns = ("query id", "passage id", "rank", "score")
TREC: Columns = ("query id", "Q0", "passage id", "rank", "score", "tag")
_HIT_COLUMNS = {4: (0, 1, 2, 3), 6: (0, 2, 3, 4)}  # query id, passage id, rank, score


def read_run(path: FilePath) -> dict[str, list[Hit]]:
    """Read a run in TREC's form (6 columns) or the reference's (4): query id -> hits by rank.

    Ranks count from 1, and no query may have a rank or a passage twice.
    """
    run: dict[str, list[Hit]] = {}
    current, ranks, passages = None, set(), set()
    for place, fields in table(path, TSV, TREC, by_space=True):
        hit = _hit(place, *(fields[column] for column in _HIT_COLUMNS[len(fields)]))
        hits = run.setdefault(hit.query_id, [])
        if hit.query_id != current:
            current, ranks, passages = hit.query_id, {h.rank for h in hits}, {h.passage_id for h in hits}
        if hit.rank in ranks or hit.passage_id in passages:
            raise place.wrong(
                f"query {current!r} has rank {hit.rank} or passage {hit.passage_id!r} already; remove one"
            )
        ranks.add(hit.rank)
        passages.add(hit.passage_id)
        hits.append(hit)
    for hits in run.values():
        hits.sort(key=lambda hit: hit.rank)
    return run


def _hit(place: Place, query_id: str, passage_id: str, rank: str, score: str) -> Hit:
    number = place.integer("rank", rank)
    if number < 1:
        raise place.wrong(f"rank {number}, expected ranks from 1; add {1 - number} to each")
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise place.wrong(f"score {score!r}, expected a finite number")
    query_id = sys.intern(place.id("query", query_id))
    return Hit(query_id, place.id("passage", passage_id), number, value)


def write_run(path: FilePath, run: Run, format: RunFormat = "tsv", tag: str = "rocketqa") -> None:
    """Write a run. Scores keep all their digits; a query without hits has no line.

    `tsv` is `query TAB passage TAB rank TAB score`, as the reference writes it
    (research/RocketQA_NAACL2021/model/src/index_search.py). `trec` is `query Q0 passage rank score tag`,
    separated by spaces; `tag` names the system. It is a ValueError if an id would not be read again, a rank
    is below 1, or a score is not finite.
    """
    write_lines(path, _lines(path, run, None if format == "tsv" else tag))


def _lines(path: FilePath, run: Run, tag: str | None) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every line, in TREC's form if there is a tag."""
    for query_id, hits in run.items():
        for hit in hits:
            assert hit.query_id == query_id, (hit.query_id, query_id)
            if hit.rank < 1 or not math.isfinite(hit.score):
                raise ValueError(f"{path}: {hit}, expected a rank from 1 and a finite score")
            _check_ids(path, query_id, hit.passage_id)
            row = [query_id, hit.passage_id, str(hit.rank), repr(float(hit.score))]
            if tag is not None:
                row = [query_id, "Q0", *row[1:], tag]
                for word in row:
                    if word.split() != [word]:
                        name = f"{word!r} of query {query_id!r}"
                        raise ValueError(f"{name} is not one word, as TREC needs; write the run as TSV")
            yield f"id {query_id!r}", ("\t" if tag is None else " ").join(row)


def _check_ids(path: FilePath, query_id: str, passage_id: str) -> None:
    """Refuse ids that a reader would refuse or not give back."""
    for noun, id in ("query", query_id), ("passage", passage_id):
        if not id or id != id.strip() or (noun == "query" and id.startswith("\ufeff")):
            problem = "is empty, has spaces around it or begins with a byte-order mark"
            raise ValueError(f"{path}: {noun} id {id!r} {problem}")
        if any(mark in id for mark in "\t\n\r"):
            raise ValueError(f"{path}: {noun} id {id!r} has a tab or line end; replace it by a space")


def first_hits(run: Run, count: int | None) -> dict[str, list[Hit]]:
    """Return the first hits of every query."""
    return {query_id: hits[:count] for query_id, hits in run.items()}


def sample_hits(run: Run, count: int, seed: int) -> dict[str, list[Hit]]:
    """Return at most `count` hits of every query, drawn at random, in their order."""
    draw, sampled = random.Random(seed), {}
    for query_id, hits in run.items():
        places = sorted(draw.sample(range(len(hits)), count)) if count < len(hits) else range(len(hits))
        sampled[query_id] = [hits[place] for place in places]
    return sampled


def with_positives(run: Run, qrels: Qrels, queries: Iterable[str]) -> dict[str, list[Hit]]:
    """Return the hits of some queries, then the positives that the run lacks, scored minus infinity."""
    complete = {}
    for query_id in queries:
        hits = complete[query_id] = list(run.get(query_id, []))
        found = {hit.passage_id for hit in hits}
        lacking = [id for id in positives(qrels, query_id) if id not in found]
        hits += [Hit(query_id, id, rank, -math.inf) for rank, id in enumerate(lacking, len(hits) + 1)]
    return complete
