"""A run folder as it lies on the disk. It is read piece by piece, and nothing in it is changed or made."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.data.collections import qrels_file, read_unlabelled
from rocketqa_paddle.data.dataset import QuerySet
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import HITS
from rocketqa_paddle.data.store import Store
from rocketqa_paddle.records import Model, positives
from rocketqa_paddle.runs import best, folder, ledger
from rocketqa_paddle.runs.artefacts import INITIAL
from rocketqa_paddle.runs.report import REPORT
from rocketqa_paddle.runtime.storage import read_json
from rocketqa_paddle.runtime.typed import read_typed
from rocketqa_paddle.runtime.yaml_files import read_yaml
from rocketqa_paddle.settings import DataSettings, EvaluationSettings
from rocketqa_paddle.training import trainer
from rocketqa_paddle.training.log import LOG, Line, MetricsLog


class Piece(NamedTuple):
    """Hits that a run keeps of a set of queries."""

    step: str
    kind: Model
    over: str
    """The step whose hits a re-ranker has ordered; of a retriever, its own."""
    queries: str
    depth: int
    """Passages that a re-ranker has scored, or that a retriever was asked for, for each query."""
    path: Path


class Archive:
    """A run of one system, finished or not.

    Args:
        place: its folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no run, or that of a comparison, or settings that are none.
    """

    def __init__(self, place: str | Path) -> None:
        self.folder = Path(place)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{place}: no such folder; expected the folder of a run (--output)")
        config = self.folder / folder.CONFIG
        if not config.is_file():
            told = f"a folder without {folder.CONFIG}, so no run; expected the --output of `rocketqa train`"
            raise ValueError(f"{place}: {told}")
        self.config = read_yaml(config)
        if "systems" in self.config:
            told = "a comparison; its tables are in report.md, and a report is of a run of one system"
            raise ValueError(f"{place}: {told}")
        if not {"output", "data", "evaluation"} <= self.config.keys():
            raise ValueError(f"{config}: not the settings of a run (without output, data or evaluation)")
        try:
            self.data = DataSettings(**self.config["data"])
            self.evaluation = EvaluationSettings(**{**self.config["evaluation"], "bm25": False})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{config}: not the settings of a run ({error})") from None

    # What happened ------------------------------------------------------------------------------

    @cached_property
    def log(self) -> list[Line]:
        """The lines of the log, in their order."""
        return MetricsLog(self.folder / LOG).read()

    @property
    def tables(self) -> str:
        """The final tables, in Markdown; empty if the run is not finished."""
        return self._text(REPORT)

    @property
    def dev_table(self) -> str:
        """The measures on dev after every step, in Markdown."""
        return self._text("steps.md")

    @property
    def state(self) -> str:
        """How far a training that was not finished has come, as far as its saved state tells."""
        path = self.folder / "last" / trainer.STATE
        if not path.is_file():
            return ""
        state = read_json(path)
        return f"{state.get('name')}, step {state.get('step')} of {state.get('total_steps')}"

    def best(self) -> dict[Model, str]:
        """The steps whose models are in `best/`, by kind."""
        path = self.folder / "best" / best.RECORD
        kept = read_typed(path, dict[str, best.Kept], "the run makes it again") if path.is_file() else {}
        return {kind: kept[kind.value]["step"] for kind in Model if kind.value in kept}

    def cards(self) -> Iterator[tuple[str, str]]:
        """The models that steps have trained, `STEP/KIND`, with their model cards."""
        for step in self.steps:
            for kind in Model:
                if text := self._text(f"{step}/{kind.value}/README.md"):
                    yield f"{step}/{kind.value}", text

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    # What was found -----------------------------------------------------------------------------

    @cached_property
    def steps(self) -> list[str]:
        """The steps of the run, in the order in which they were first measured."""
        there = {path.parent.name for path in self.folder.glob(f"*/{ledger.RECORD}")} - {"best"}
        logged = [line["stage"] for line in self.log if line["stage"] in there]
        return [*dict.fromkeys([*([INITIAL] if INITIAL in there else []), *logged, *sorted(there)])]

    @cached_property
    def pieces(self) -> list[Piece]:
        """The hits on dev and tests, in the order of the steps."""
        return [piece for step in self.steps for piece in self._pieces(step)]

    def _pieces(self, step: str) -> Iterator[Piece]:
        path = self.folder / step / ledger.RECORD
        splits = sorted({*self.data.tests, self.data.dev}, key=len, reverse=True)
        records = read_typed(path, dict[str, ledger.Record | None], f"remove {path.parent}")
        for name, record in records.items():
            file = path.with_name(f"{name}{HITS}")
            what, _, rest = name.partition(".")
            queries = next((split for split in splits if f".{rest}".endswith(f".{split}")), "")
            if not record or not queries or what not in ("hits", "reranked") or not file.is_file():
                continue
            kind = Model.RETRIEVER if what == "hits" else Model.RERANKER
            over = step if what == "hits" else rest.removesuffix(f".{queries}")
            depth = record["made_of"].get("depth")
            depth = depth if isinstance(depth, int) else self.evaluation.depth
            yield Piece(step, kind, over, queries, depth, file)

    def find(self, step: str, queries: str, reranked_by: str | None = None) -> Piece | None:
        """What the retriever of a step found, or what the re-ranker of another made of that."""
        kind, by = (Model.RERANKER, reranked_by) if reranked_by else (Model.RETRIEVER, step)
        wanted = (by, kind, step, queries)
        return next((p for p in self.pieces if (p.step, p.kind, p.over, p.queries) == wanted), None)

    def hits(self, piece: Piece) -> Candidates:
        """Map the hits of a piece.

        Raises:
            ValueError: the file is damaged, or of another corpus.
        """
        found = Candidates.load(piece.path, self.corpus.ids)
        if found.hits["row"].max(initial=-1) >= len(self.corpus):
            raise ValueError(f"{piece.path}: hits of another corpus than {self.corpus.folder}")
        return found

    # Texts --------------------------------------------------------------------------------------

    @cached_property
    def corpus(self) -> Store:
        """The passages, of which only those that are asked for are read."""
        return Store(self.data.store or self.folder / folder.CORPUS)

    def queries(self, name: str) -> QuerySet:
        """The queries of a split for which there are hits, with their judgements.

        Raises:
            FileNotFoundError: the collection is not where the settings say.
        """
        texts, _ = read_unlabelled(self.data.folder, name, "skip")
        asked = self.hits(next(piece for piece in self.pieces if piece.queries == name)).queries
        if lacking := [id for id in asked if id not in texts]:
            told = f"query {lacking[0]!r}, which the run has asked, is not there any more"
            raise ValueError(f"{self.data.folder}: {told}")
        judged, known = load_qrels(qrels_file(Path(self.data.folder), name)), {}
        for id in asked:
            known[id] = {p: grade for p, grade in judged.get(id, {}).items() if p in self.corpus}
        return QuerySet(
            name, {id: texts[id] for id in asked}, {id: row for id in asked if (row := known[id])}
        )


def label(piece: Piece) -> str:
    """What a reader calls the maker of some hits."""
    if piece.kind is Model.RERANKER:
        return f"re-ranker of {piece.step} over {piece.over}"
    return "initial checkpoint" if piece.step == INITIAL else f"retriever of {piece.step}"


def positive_rows(corpus: Store, queries: QuerySet) -> dict[str, set[int]]:
    """The rows of the positives of every query."""
    return {id: {corpus.row_of(p) for p in positives(queries.qrels, id)} for id in queries.qrels}


def facts(values: Any, name: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(values, dict):
        return {name: values}
    inner = (facts(value, f"{name}.{key}" if name else str(key)) for key, value in values.items())
    return {key: value for part in inner for key, value in part.items()}
