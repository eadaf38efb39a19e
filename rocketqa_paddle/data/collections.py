"""Collections: a corpus, the queries of its splits, and their relevance judgements."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from rocketqa_paddle.data.corpus import StoredCorpus
from rocketqa_paddle.data.faults import Faults, OnError
from rocketqa_paddle.data.places import FilePath, Place, is_empty
from rocketqa_paddle.data.qrels import Judgement, judgements, nested
from rocketqa_paddle.data.tables import missing, names_near
from rocketqa_paddle.data.texts import Placed, Record, Records, count_empty, placed_passages, placed_queries
from rocketqa_paddle.records import Collection, Passage, Query, Split, positives


def read_collection(
    folder: FilePath, splits: Sequence[str], on_error: OnError = "stop", store: Path | None = None
) -> Collection:
    """Read a corpus and the named splits from a folder, and check that they belong together.

    A folder with `para.txt` has the layout of RocketQA and MS MARCO, whose files may be gzipped (`.gz`):

    - `para.txt` (`id TAB text`) and, optionally, `para.title.txt` (`id TAB title`)
    - `<split>.query.txt` (`id TAB text`)
    - `qrels.<split>.tsv` (see `load_qrels`); a split without it is unlabelled

    Any other folder with `corpus.jsonl` is read by `read_beir`.

    Records are faulty if a query or passage has no text, a judgement names an unknown query or passage, or a
    query of a labelled split has no relevant passage. `on_error` says whether they stop the reading, with one
    FormatError that counts them, or are left out and counted in the notes of the collection. An empty file
    and an id that appears twice are FormatErrors in any case.

    The passages are in memory, or, if `store` names a folder, in a store there (see `corpus.StoredCorpus`).
    """
    folder = Path(folder)
    if _find(folder, "para.txt"):
        return _read_rocketqa(folder, splits, on_error, store)
    if _find(folder, "corpus.jsonl"):
        return read_beir(folder, splits, on_error, store)
    given = f"it has {names_near(folder / 'para.txt')}" if folder.is_dir() else "there is no such folder"
    raise FileNotFoundError(
        f"{folder}: expected a collection, with para.txt (RocketQA) or corpus.jsonl (BEIR); {given}"
    )


def _read_rocketqa(folder: Path, splits: Sequence[str], on_error: OnError, store: Path | None) -> Collection:
    corpus_file, titles = _need(folder, "para.txt"), _find(folder, "para.title.txt")
    query_files = {split: _need(folder, f"{split}.query.txt") for split in splits}
    qrels_files = {split: _find(folder, f"qrels.{split}.tsv") for split in splits}
    labels = {split: list(judgements(path)) for split, path in qrels_files.items() if path}
    made = _Joined(folder, store)
    queries = {split: made.queries(path) for split, path in query_files.items()}
    made.read_corpus(corpus_file, titles)
    for split, records in queries.items():
        made.join(split, records, labels.get(split))
    return made.collection(on_error)


def read_beir(
    folder: FilePath, splits: Sequence[str], on_error: OnError = "stop", store: Path | None = None
) -> Collection:
    """Read a BEIR folder, whose files may be gzipped (`.gz`).

    - `corpus.jsonl` (`_id`, `title`, `text`)
    - `queries.jsonl` (`_id`, `text`)
    - `qrels/<split>.tsv` (`query-id`, `corpus-id`, `score` under a header): a split has these queries

    The checks are those of `read_collection`, except that a passage with neither title nor text is kept: some
    datasets (FiQA) have such passages, and published scores include them. A note counts them.
    Source: github.com/beir-cellar/beir.
    """
    folder = Path(folder)
    corpus_file, query_file = _need(folder, "corpus.jsonl"), _need(folder, "queries.jsonl")
    qrels_files = {split: _need(folder / "qrels", f"{split}.tsv") for split in splits}
    labels = {split: list(judgements(path)) for split, path in qrels_files.items()}
    for split, path in qrels_files.items():
        if not labels[split]:
            raise Place(path, 1).wrong("no judgements")
    made = _Joined(folder, store)
    queries = made.queries(query_file, {row[1] for judged in labels.values() for row in judged})
    made.read_corpus(corpus_file, None)
    for split, judged in labels.items():
        made.join(split, queries, judged, only_judged=True)
    return made.collection(on_error)


class _Joined:
    """A collection in the making. The records of its files are joined by their ids, and faults are noted."""

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.folder, self.store, self.faults, self.splits = folder, store, Faults(), {}
        self._without_text: dict[Path, set[str]] = {}

    def queries(self, path: Path, wanted: Container[str] | None = None) -> Records[Query]:
        """Read queries. It is no fault that one which is not wanted has no text."""
        placed = placed_queries(path, may_be_empty=True)
        return Records(path, "query").fill(self._with_text(path, f"queries of {path.name}", placed, wanted))

    def read_corpus(self, path: Path, titles: Path | None) -> None:
        """Read the passages. BEIR's may be empty."""

        def read(loaded: Container[str]) -> Placed[Passage]:
            placed = placed_passages(path, titles, may_be_empty=True, loaded=loaded)
            if path.name.startswith("para"):
                placed = self._with_text(path, f"passages of {path.name}", placed)
            return placed

        self.corpus: Records[Passage] | StoredCorpus
        if self.store:
            sources = [path, titles] if titles else [path]
            self.corpus = StoredCorpus(self.store, sources, read, lambda: not self._without_text.get(path))
        else:
            self.corpus = Records(path, "passage")
            self.corpus.fill(read(self.corpus.by_id))

    def _with_text(
        self, path: Path, kind: str, placed: Placed[Record], wanted: Container[str] | None = None
    ) -> Placed[Record]:
        without = self._without_text.setdefault(path, set())
        for place, record in placed:
            if not is_empty(record):
                yield place, record
                continue
            without.add(record.id)
            if wanted is None or record.id in wanted:
                self.faults.add(f"{kind} without a text", record.id, place)

    def join(
        self, name: str, queries: Records[Query], judged: list[Judgement] | None, only_judged: bool = False
    ) -> None:
        """Make a split of queries and their judgements; without any, it is unlabelled."""
        if judged is None:
            self.splits[name] = Split(queries.by_id)
            return
        known = [row for row in judged if self.is_known("queries", row[0], row[1], queries)]
        qrels = nested(row for row in known if self.is_known("passages", row[0], row[2], self.corpus))
        ids = dict.fromkeys(row[1] for row in known) if only_judged else queries.by_id
        labelled = {id: queries.by_id[id] for id in ids if positives(qrels, id)}
        for id, place in queries.places(id for id in ids if id not in labelled):
            self.faults.add(f"queries of {queries.path.name} without a relevant passage", id, place)
        self.splits[name] = Split(labelled, {id: row for id, row in qrels.items() if id in labelled})

    def is_known(self, noun: str, place: Place, id: str, records: Records | StoredCorpus) -> bool:
        """Whether a judged id is among the records; if not, it is a fault."""
        if id in records.by_id:
            return True
        if id not in self._without_text.get(records.path, ()):
            self.faults.add(f"judged {noun} that are not in {records.path.name}", id, place)
        return False

    def collection(self, on_error: OnError) -> Collection:
        """The collection, if it may be made."""
        notes = self.faults.settle(self.folder, on_error)
        kept = count_empty(self.corpus.path, len(self.corpus.by_id), self.corpus.empty)
        notes = (*notes, kept) if kept else notes
        return Collection(self.corpus.by_id, self.splits, notes, self.corpus.fingerprint)


def read_unlabelled(
    folder: FilePath, name: str, on_error: OnError = "stop"
) -> tuple[Mapping[str, Query], tuple[str, ...]]:
    """Read the queries of a split, without its judgements: id -> query, and notes on what was left out.

    In the layout of RocketQA they are `<name>.query.txt`. In a BEIR folder they are `<name>.jsonl` (`_id`,
    `text`) or, if there is none, the queries that `qrels/<name>.tsv` names. A query without a text is faulty;
    for `on_error` see `read_collection`.
    """
    folder = Path(folder)
    made = _Joined(folder)
    if _find(folder, "para.txt"):
        queries = made.queries(_need(folder, f"{name}.query.txt")).by_id
    elif path := _find(folder, f"{name}.jsonl"):
        queries = made.queries(path).by_id
    else:
        judged = list(judgements(_need(folder / "qrels", f"{name}.tsv")))
        every = made.queries(_need(folder, "queries.jsonl"), {id for _, id, _, _ in judged})
        known = {id for place, id, _, _ in judged if made.is_known("queries", place, id, every)}
        queries = {id: query for id, query in every.by_id.items() if id in known}
    return queries, made.faults.settle(folder, on_error)


def qrels_file(folder: Path, split: str) -> Path:
    """Find the judgements of a split in a collection of either layout.

    Raises:
        FileNotFoundError: they are not there.
    """
    return _find(folder / "qrels", f"{split}.tsv") or _need(folder, f"qrels.{split}.tsv")


def _find(folder: Path, name: str) -> Path | None:
    """Find a file under its name or with `.gz` appended."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _need(folder: Path, name: str) -> Path:
    if found := _find(folder, name):
        return found
    raise missing(folder / name)
