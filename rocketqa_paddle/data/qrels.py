"""Files of relevance judgements (qrels), as RocketQA, BEIR and TREC write them."""

from collections.abc import Iterable, Iterator

from rocketqa_paddle.data.places import FilePath, Place, shown
from rocketqa_paddle.data.tables import columns, lines, plain
from rocketqa_paddle.data.texts import ID_NAMES

_LAYOUTS = (
    ("query id", "passage id"),
    ("query-id", "corpus-id", "score"),
    ("query id", "0", "passage id", "relevance"),
)
_COLUMNS = {2: (0, 1), 3: (0, 1, 2), 4: (0, 2, 3)}  # query id, passage id, relevance
_HEADER = ID_NAMES | {"query", "passage", "document", "doc", "topic"}
_LARGEST = 1_000_000  # trec_eval takes memory for every grade below the highest one

Judgement = tuple[Place, str, str, int]
"""Place, query id, passage id, relevance."""


def load_qrels(path: FilePath) -> dict[str, dict[str, int]]:
    """Load judgements: query id -> passage id -> relevance. A pair must not have two different ones.

    Tabs, or else spaces, separate the columns. A header is left out, and so are comments: lines without a tab
    that begin with `#` and a space.

    - 2 columns, `query passage`: relevance 1 (`qrels.<split>.tsv` of the RocketQA corpora)
    - 3 columns under a header, such as BEIR's `query-id corpus-id score`
    - 4 columns, `query 0 passage relevance`: TREC, and MS MARCO's own files
    """
    return nested(judgements(path))


def judgements(path: FilePath) -> Iterator[Judgement]:
    """Yield the judgements of a file in its order; see `load_qrels`."""
    rows = (row for row in lines(path) if not _is_comment(row[1]))
    for number, (place, fields) in enumerate(columns(rows, *_LAYOUTS, by_space=True)):
        query_id, passage_id, *relevance = (fields[column] for column in _COLUMNS[len(fields)])
        if number == 0:
            if {plain(query_id), plain(passage_id)} <= _HEADER:
                continue
            if len(fields) == 3:
                header = " ".join(_LAYOUTS[1])
                raise place.wrong(f"3 columns without a header ({header}); add it, or give 2 or 4 columns")
        grade = place.integer("relevance", *relevance) if relevance else 1
        if abs(grade) > _LARGEST:
            raise place.wrong(f"relevance {grade}, expected at most {_LARGEST}")
        yield place, place.id("query", query_id), place.id("passage", passage_id), grade


def _is_comment(line: str) -> bool:
    return line[0] == "#" and "\t" not in line and line[1:2] in ("", " ", "#")


def nested(judgements: Iterable[Judgement]) -> dict[str, dict[str, int]]:
    """Group judgements by query; refuse two relevances of a pair."""
    qrels: dict[str, dict[str, int]] = {}
    for place, query_id, passage_id, relevance in judgements:
        before = qrels.setdefault(query_id, {}).setdefault(passage_id, relevance)
        if before != relevance:
            raise place.wrong(
                f"query {shown(query_id)} and passage {shown(passage_id)} have relevance {relevance} here "
                f"and {before} before; keep one"
            )
    return qrels
