"""Runs: files of what a retriever or re-ranker found for each query, as TREC or the reference writes them."""

import math
import operator
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from operator import itemgetter
from typing import Literal

from rocketqa_paddle.data.places import FilePath, FormatError, id_problem, shown
from rocketqa_paddle.data.tables import Columns, plain, table, write_lines
from rocketqa_paddle.records import Hit, Run

RunFormat = Literal["tsv", "trec"]

HITS = ".npy"
"""The ending of the files in which a run keeps its hits; see `candidates`."""
TSV: Columns = ("query id", "passage id", "rank", "score")
TREC: Columns = ("query id", "Q0", "passage id", "rank", "score", "tag")
_COLUMNS = {4: itemgetter(0, 1, 2, 3), 6: itemgetter(0, 2, 3, 4)}  # query id, passage id, rank, score


def read_run(path: FilePath) -> dict[str, list[Hit]]:
    """Read a run in TREC's form (6 columns) or the reference's (4): query id -> hits, best first.

    The score decides the order, as in trec_eval and ir_measures, and the rank only that of equal scores; a
    warning counts the queries whose ranks say something else. Hits are numbered from 1 in that order, so
    ranks may count from 0 (BEIR's `save_runfile`) or be equal. No query may have a passage twice.
    """
    if str(path).endswith(HITS):
        raise FormatError(
            f"{path}: hits that a run keeps; write them as a run file: rocketqa hits {path} OUTPUT"
        )
    scores: dict[str, dict[str, float]] = {}
    ranks: dict[str, list[int]] = {}
    for place, fields in table(path, TSV, TREC, by_space=True):
        query_id, passage_id, rank, score = _COLUMNS[len(fields)](fields)
        if place.number == 1 and plain(rank) == "rank":
            continue  # a header
        found = scores.get(query_id)
        if found is None:
            found = scores[place.id("query", query_id)] = {}
            ranks[query_id] = []
        if passage_id in found:
            raise place.wrong(f"query {shown(query_id)} has passage {shown(passage_id)} already; remove one")
        found[place.id("passage", passage_id)] = place.real("score", score)
        ranks[query_id].append(place.integer("rank", rank))
    run, unlike = {}, 0
    for query_id, found in scores.items():
        hits = sorted(
            zip(map(operator.neg, found.values()), ranks.pop(query_id), count(), found, strict=False)
        )
        unlike += any(hit[1] > other[1] for hit, other in pairwise(hits))
        run[query_id] = [Hit(query_id, id, rank, -less) for rank, (less, _, _, id) in enumerate(hits, 1)]
        found.clear()
    if unlike:
        told = f"the scores of {unlike} of {len(run)} queries give another order than the ranks"
        warnings.warn(f"{os.fspath(path)}: {told}; the scores count", stacklevel=2)
    return run


def write_run(path: FilePath, run: Run, format: RunFormat = "tsv", tag: str = "rocketqa") -> None:
    """Write a run. Scores keep all their digits; a query without hits has no line.

    `tsv` is `query TAB passage TAB rank TAB score`, as the reference writes it
    (research/RocketQA_NAACL2021/model/src/index_search.py). `trec` is `query Q0 passage rank score tag`,
    separated by spaces; `tag` names the system. It is a ValueError if an id would not be read again, a rank
    is below 1, or a score is not finite.
    """
    if format == "trec" and tag.split() != [tag]:
        raise ValueError(f"{path}: the tag {shown(tag)} is not one word, as TREC needs")
    write_lines(path, _lines(path, run, format, tag))


def check_run_ids(path: FilePath, format: RunFormat, query: Iterable[str], passage: Iterable[str]) -> None:
    """Check that a run of these query and passage ids can be written; it is a ValueError if not."""
    for noun, ids in {"query": query, "passage": passage}.items():
        for id in ids:
            problem = id_problem(id)
            if not problem and format == "trec" and id.split() != [id]:
                problem = "is not one word, as TREC needs; write the run as TSV"
            if problem:
                raise ValueError(f"{os.fspath(path)}: {noun} id {shown(id)} {problem}")


def _lines(path: FilePath, run: Run, format: RunFormat, tag: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every line."""
    for query_id, hits in run.items():
        check_run_ids(path, format, [query_id] if hits else [], [hit.passage_id for hit in hits])
        for hit in hits:
            assert hit.query_id == query_id, (hit.query_id, query_id)
            if hit.rank < 1 or not math.isfinite(hit.score):
                raise ValueError(f"{path}: {hit}, expected a rank from 1 and a finite score")
            row = [query_id, hit.passage_id, str(hit.rank), repr(float(hit.score))]
            line = "\t".join(row) if format == "tsv" else " ".join((query_id, "Q0", *row[1:], tag))
            yield f"id {shown(query_id)}", line
