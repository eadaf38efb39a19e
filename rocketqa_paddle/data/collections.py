"""Collections: a corpus, the queries of its splits, and their relevance judgements."""

import os
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rocketqa_paddle.data.tables import FilePath, Place, is_empty, json_lines, missing, names_near, table
from rocketqa_paddle.records import Collection, Passage, Passages, Query, Split, positives

Record = TypeVar("Record", Query, Passage)

QRELS = (
    ("query id", "passage id"),
    ("query-id", "corpus-id", "score"),
    ("query id", "0", "passage id", "relevance"),
)
_JUDGEMENT_COLUMNS = {2: (0, 1), 3: (0, 1, 2), 4: (0, 2, 3)}  # query id, passage id, relevance
_NO_IDS = (
    "put one tab between columns, and none inside a text; the reference's inference files of 4 columns "
    "(*.format, para_8part/*) have no ids: give the files they were made from"
)


def read_queries(path: FilePath) -> Iterator[Query]:
    """Read queries, one `id TAB text` a line (`<split>.query.txt` of the RocketQA corpora)."""
    for place, (id, text) in table(path, ("id", "text"), remedy=_NO_IDS):
        yield place.query(id, text)


def read_passages(path: FilePath, titles: FilePath | None = None) -> Iterator[Passage]:
    """Read passages, one `id TAB text` a line (`para.txt`), and their titles from a second file.

    `titles` has `id TAB title` lines (`para.title.txt`), one for every passage; titles of other passages are
    ignored. Both files are read side by side, so titles in the order of the passages take no memory; in
    another order, they are matched by id.
    Source: research/RocketQA_NAACL2021/data_process/utils.py.
    """
    rows = table(path, ("id", "text"), remedy=_NO_IDS)
    if titles is None:
        yield from (place.passage(id, "", text) for place, (id, text) in rows)
        return
    title_rows = table(titles, ("id", "title"))
    waiting: dict[str, str] = {}  # titles that were read before their passages
    for place, (id, text) in rows:
        while id not in waiting and (row := next(title_rows, None)):
            title_id, title = row[1]
            waiting[title_id] = title
        if id not in waiting:
            raise place.wrong(
                f"passage id {id!r} has no line in {os.fspath(titles)}, or appears here twice; "
                f"give each passage one line in both files (- for no title)"
            )
        yield place.passage(id, waiting.pop(id), text)


_Judgement = tuple[Place, str, str, int]  # place, query id, passage id, relevance


def _judgements(path: FilePath) -> Iterator[_Judgement]:
    for place, fields in table(path, *QRELS, by_space=True):
        if len(fields) == 3 and place.number == 1:
            if tuple(fields) != QRELS[1]:
                header = " ".join(QRELS[1])
                raise place.wrong(
                    f"3 columns without BEIR's header ({header}); add it, or give 2 or 4 columns"
                )
            continue
        query_id, passage_id, *relevance = (fields[column] for column in _JUDGEMENT_COLUMNS[len(fields)])
        grade = place.integer("relevance", relevance[0]) if relevance else 1
        yield place, place.id("query", query_id), place.id("passage", passage_id), grade


def load_qrels(path: FilePath) -> dict[str, dict[str, int]]:
    """Load judgements: query id -> passage id -> relevance. A pair must not have two different ones.

    Tabs, or else spaces, separate the columns.

    - 2 columns, `query passage`: relevance 1 (`qrels.<split>.tsv` of the RocketQA corpora)
    - 3 columns under BEIR's header, `query-id corpus-id score`
    - 4 columns, `query 0 passage relevance`: TREC, and MS MARCO's own files
    """
    return _nested(_judgements(path))


def _nested(judgements: Iterable[_Judgement]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for place, query_id, passage_id, relevance in judgements:
        before = qrels.setdefault(query_id, {}).setdefault(passage_id, relevance)
        if before != relevance:
            raise place.wrong(
                f"query {query_id!r} and passage {passage_id!r} have relevance {relevance} here "
                f"and {before} before; keep one"
            )
    return qrels


def keyed(path: FilePath, noun: str, records: Iterable[Record]) -> dict[str, Record]:
    """Index the records of a file, one a line, by id; refuse an empty file and an id on two lines."""
    found: dict[str, Record] = {}
    for line, record in enumerate(records, 1):
        if record.id in found:
            before = list(found).index(record.id) + 1
            raise Place(path, line).wrong(f"{noun} id {record.id!r} is already on line {before}; remove one")
        found[record.id] = record
    if not found:
        raise Place(path, 1).wrong(f"empty file, expected one {noun} a line")
    return found


def read_collection(folder: FilePath, splits: Sequence[str]) -> Collection:
    """Read a corpus and the named splits from a folder, and check that they belong together.

    A folder with `para.txt` has the layout of RocketQA and MS MARCO, whose files may be gzipped (`.gz`):

    - `para.txt` (`id TAB text`) and, optionally, `para.title.txt` (`id TAB title`)
    - `<split>.query.txt` (`id TAB text`)
    - `qrels.<split>.tsv` (see `load_qrels`); a split without it is unlabelled

    Any other folder with `corpus.jsonl` is read by `read_beir`. It is a FormatError if a file is empty, an id
    appears twice, a judgement names an unknown query or passage, or a query of a labelled split has no
    relevant passage.
    """
    folder = Path(folder)
    if _find(folder, "para.txt"):
        return _read_rocketqa(folder, splits)
    if _find(folder, "corpus.jsonl"):
        return read_beir(folder, splits)
    given = f"it has {names_near(folder / 'para.txt')}" if folder.is_dir() else "there is no such folder"
    raise FileNotFoundError(
        f"{folder}: expected a collection, with para.txt (RocketQA) or corpus.jsonl (BEIR); {given}"
    )


def _read_rocketqa(folder: Path, splits: Sequence[str]) -> Collection:
    corpus, titles = _need(folder, "para.txt"), _find(folder, "para.title.txt")
    query_files = {split: _need(folder, f"{split}.query.txt") for split in splits}
    qrels_files = {split: _find(folder, f"qrels.{split}.tsv") for split in splits}
    labels = {split: list(_judgements(path)) for split, path in qrels_files.items() if path}
    checked = {
        split: _split(path, keyed(path, "query", read_queries(path)), labels.get(split))
        for split, path in query_files.items()
    }
    return Collection(_corpus(corpus, read_passages(corpus, titles), labels), checked)


def read_beir(folder: FilePath, splits: Sequence[str]) -> Collection:
    """Read a BEIR folder, whose files may be gzipped (`.gz`).

    - `corpus.jsonl` (`_id`, `title`, `text`)
    - `queries.jsonl` (`_id`, `text`)
    - `qrels/<split>.tsv` (`query-id`, `corpus-id`, `score` under a header): a split has these queries

    The checks are those of `read_collection`, except that a passage with neither title nor text is kept: some
    datasets (FiQA) have such passages, and published scores include them. A warning counts them.
    Source: github.com/beir-cellar/beir.
    """
    folder = Path(folder)
    corpus, query_file = _need(folder, "corpus.jsonl"), _need(folder, "queries.jsonl")
    qrels_files = {split: _need(folder / "qrels", f"{split}.tsv") for split in splits}
    labels = {split: list(_judgements(path)) for split, path in qrels_files.items()}
    for split, path in qrels_files.items():
        if not labels[split]:
            raise Place(path, 1).wrong("no judgements")
    queries = keyed(query_file, "query", _beir_queries(query_file))
    checked = {split: _split(query_file, queries, labels[split], only_judged=True) for split in splits}
    return Collection(_corpus(corpus, _beir_passages(corpus), labels), checked)


def _beir_queries(path: Path) -> Iterator[Query]:
    for place, item in json_lines(path):
        yield place.query(place.string(item, "_id"), place.string(item, "text"))


def _beir_passages(path: Path) -> Iterator[Passage]:
    total = empty = 0
    for place, item in json_lines(path):
        id, text = place.string(item, "_id"), place.string(item, "text")
        title = place.string(item, "title", default="")
        passage = place.passage(id, title, text, may_be_empty=True)
        total += 1
        empty += is_empty(passage)
        yield passage
    if empty:
        warnings.warn(f"{path}: {empty} of {total} passages have neither title nor text; kept", stacklevel=2)


def read_unlabelled(folder: FilePath, name: str) -> dict[str, Query]:
    """Read the queries of a split, without its judgements: id -> query.

    In the layout of RocketQA they are `<name>.query.txt`. In a BEIR folder they are `<name>.jsonl` (`_id`,
    `text`) or, if there is none, the queries that `qrels/<name>.tsv` names.
    """
    folder = Path(folder)
    if _find(folder, "para.txt"):
        path = _need(folder, f"{name}.query.txt")
        return keyed(path, "query", read_queries(path))
    if path := _find(folder, f"{name}.jsonl"):
        return keyed(path, "query", _beir_queries(path))
    named = {query_id for _, query_id, _, _ in _judgements(_need(folder / "qrels", f"{name}.tsv"))}
    path = _need(folder, "queries.jsonl")
    return {id: query for id, query in keyed(path, "query", _beir_queries(path)).items() if id in named}


def _find(folder: Path, name: str) -> Path | None:
    """Find a file under its name or with `.gz` appended."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _need(folder: Path, name: str) -> Path:
    if found := _find(folder, name):
        return found
    raise missing(folder / name)


def _corpus(path: Path, records: Iterable[Passage], labels: dict[str, list[_Judgement]]) -> Passages:
    passages = keyed(path, "passage", records)
    for judgements in labels.values():
        _check_ids("passage", [(place, id) for place, _, id, _ in judgements], passages, path)
    return passages


def _split(
    path: Path, queries: dict[str, Query], judgements: list[_Judgement] | None, only_judged: bool = False
) -> Split:
    if judgements is None:
        return Split(queries)
    _check_ids("query", [(place, id) for place, id, _, _ in judgements], queries, path)
    qrels = _nested(judgements)
    ids = qrels if only_judged else queries
    without = {id for id in ids if not positives(qrels, id)}
    for line, id in enumerate(queries, 1):
        if id in without:
            raise Place(path, line).wrong(
                f"query {id!r} has no relevant passage, like {len(without)} of {len(ids)} in the split; "
                "judge them or remove them"
            )
    return Split({id: queries[id] for id in ids}, qrels)


def _check_ids(noun: str, named: list[tuple[Place, str]], known: Container[str], path: Path) -> None:
    unknown = [(place, id) for place, id in named if id not in known]
    if unknown:
        place, id = unknown[0]
        raise place.wrong(
            f"{noun} id {id!r} is not in {path}, like those of {len(unknown)} of {len(named)} judgements; "
            "give files of one collection"
        )
