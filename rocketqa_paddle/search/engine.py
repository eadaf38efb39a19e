"""`SearchEngine`: a retriever, its index and perhaps a re-ranker, opened once and searched many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.data.candidates import HIT, Candidates
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint
from rocketqa_paddle.networks.ernie import Joined, unchanging
from rocketqa_paddle.records import Hit, Passages, Queries, Result, Run
from rocketqa_paddle.runtime import device
from rocketqa_paddle.runtime.storage import read_json, write_json
from rocketqa_paddle.search import fusion
from rocketqa_paddle.search.folder import IndexFolder
from rocketqa_paddle.search.fusion import Fusion, check_fusion
from rocketqa_paddle.search.milvus import MilvusIndex
from rocketqa_paddle.search.retrieval import reorder
from rocketqa_paddle.settings import COLLECTION, at_least

SETTINGS, DEPTH = "engine.json", 20


def write_depth(folder: str | Path, depth: int) -> None:
    """Note in a `best` folder how many passages a search re-ranks unless it says otherwise."""
    write_json(Path(folder) / SETTINGS, {"depth": depth})


def read_depth(folder: str | Path) -> int:
    """Return what `write_depth` wrote; `DEPTH` where it did not.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / SETTINGS
    depth = read_json(path).get("depth") if path.is_file() else DEPTH
    if type(depth) is not int or depth < 0:
        raise ValueError(f"{path}: depth is {depth!r}, expected a whole number from 0 on")
    return depth


def find_best(folder: Path) -> Path | None:
    """Return the folder with a retriever and its index: this one, or the `best` folder in a run folder."""
    return next((best for best in (folder / "best", folder) if (best / "retriever").is_dir()), None)


class PassageIndex(Protocol):
    """What finds passages by vectors and by BM25: an index folder or a collection of Milvus.

    Without BM25, `fused` and `both` raise a ValueError that says how to build it.
    """

    def find(self, query_ids: Sequence[str], queries: np.ndarray, k: int) -> tuple[Run, Passages]:
        """Find the `k` best passages for query vectors `[queries, hidden]`: the hits, and their texts."""
        ...

    def __len__(self) -> int: ...

    @property
    def has_bm25(self) -> bool:
        """Whether `fused` and `both` work."""
        ...

    def fused(
        self,
        query_ids: Sequence[str],
        queries: np.ndarray,
        texts: Sequence[str],
        k: int,
        fuse: Fusion,
        weight: float | None,
    ) -> tuple[Run, Passages, dict[str, list[float]]]:
        """Find passages by vectors and by BM25, fused: the hits, their texts and their inner products."""
        ...

    def both(
        self, query_ids: Sequence[str], queries: np.ndarray, texts: Sequence[str], k: int
    ) -> tuple[Candidates, Candidates]:
        """Find the `k` best passages by vectors, and those by BM25."""
        ...


@dataclass(frozen=True)
class Found:
    """What is found for one query before a re-ranker reads it."""

    query: str
    hits: Sequence[Hit]
    """Best first."""
    inner: Sequence[float]
    """The retriever's scores of the hits."""
    passages: Passages
    """The texts of the hits, perhaps among others."""

    def pairs(self, depth: int) -> list[tuple[str, str, str]]:
        """The query, title and text of each of the `depth` best, for a re-ranker to read."""
        best = (self.passages[hit.passage_id] for hit in self.hits[:depth])
        return [(self.query, passage.title, passage.text) for passage in best]

    def results(self, k: int, scores: np.ndarray) -> list[Result]:
        """The `k` best, of which the first were re-ranked with these scores, `[depth]` or fewer.

        The deeper ones follow in the order in which they were found, each with 1 less than the one before.
        """
        final = [(place, hit.score) for place, hit in enumerate(self.hits)]
        if depth := len(scores):
            hits = np.array([final], HIT)
            reorder(hits, scores[None])
            final = hits[0].tolist()
        return [
            Result(
                rank,
                score,
                self.passages[self.hits[place].passage_id],
                self.inner[place],
                float(scores[place]) if place < depth else None,
                place + 1,
            )
            for rank, (place, score) in enumerate(final[:k], 1)
        ]


def results_of(found: Sequence[Found], k: int, depth: int, scores: np.ndarray) -> list[list[Result]]:
    """The results of some queries; `scores` are those of `Found.pairs(depth)` of all of them, in a row."""
    ends = np.cumsum([len(one.hits[:depth]) for one in found])
    starts = [0, *ends]
    return [one.results(k, scores[start:end]) for one, start, end in zip(found, starts, ends, strict=False)]


class SearchEngine:
    """Finds passages for queries. Open one with `SearchEngine.open`.

    Args:
        retriever: the model that encodes queries.
        index: the passages, encoded by the same model.
        reranker: the model that orders what was found.
        place: Paddle's name of the device to compute on.
        depth: passages a query that the re-ranker reads unless a search says otherwise.
        digest: of the retriever, if it is known.
    """

    def __init__(
        self,
        retriever: Checkpoint,
        index: PassageIndex,
        reranker: Checkpoint | None = None,
        place: str = "cpu",
        depth: int = DEPTH,
        digest: str = "",
    ) -> None:
        self.retriever, self._index = retriever, index
        self.reranker, self.place, self.depth = reranker, place, depth
        self.digest = digest or retriever.digest()
        self._joined: Joined = {}

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        index: str | Path | None = None,
        reranker: str | Path | Literal[False] | None = None,
        use_cuda: bool = False,
        *,
        uri: str | None = None,
        collection: str = COLLECTION,
    ) -> SearchEngine:
        """Read the models and open the index; texts stay on the disk until a search finds them.

        Args:
            checkpoint: the `best` folder of a run (with `retriever/`, `index/` and perhaps `reranker/`), the
                run folder that has it, or the retriever that made the index: a folder, a toolkit's JSON or a
                published name.
            index: an index folder; by default the one in the `best` folder.
            reranker: a re-ranker; by default the one in the `best` folder, if any; False goes without.
            use_cuda: compute on a GPU.
            uri: where Milvus has the passages, instead of an index folder: a file `NAME.db`, or
                `http://HOST:19530`.
            collection: the name of the passages there.

        Raises:
            FileNotFoundError: a model, a file of the index or the collection is not there.
            ValueError: no index is named, or two are; another model made it, it is damaged, a model is of the
                wrong kind, there is no GPU, or another process has the file of Milvus.
            OSError: Milvus does not answer.
        """
        if index and uri:
            raise ValueError(f"two indexes, {index} and {uri}: give one of them")
        checkpoint, depth = Path(checkpoint), DEPTH
        if best := find_best(checkpoint):
            index = index or (None if uri else best / "index")
            if reranker is None and (best / "reranker").is_dir():
                reranker, depth = best / "reranker", read_depth(best)
            checkpoint = best / "retriever"
        elif index is None and uri is None:
            convert.find(checkpoint)  # says what is wrong where there is no model at all
            raise ValueError(
                f"{checkpoint} has no retriever/ and index/ inside: name the index with index=FOLDER "
                "(on the command line: --index FOLDER), or Milvus with uri= (--uri)"
            )
        place = device.find_device(use_cuda)
        with device.using(place):
            dual = convert.read(checkpoint, kind=DUAL)
            digest = dual.digest()
            found = MilvusIndex(uri, collection, digest) if uri else IndexFolder(index, digest)
            cross = convert.read(reranker, kind=CROSS) if reranker else None
        return cls(dual, found, cross, place, depth, digest)

    def search(
        self,
        queries: Sequence[str],
        k: int = 5,
        depth: int | None = None,
        *,
        fuse: Fusion | None = None,
        weight: float | None = None,
        progress: str = "",
    ) -> list[list[Result]]:
        """Return the results of every query, in the order of the queries, best first.

        Args:
            queries: texts, none of them empty.
            k: passages a query; an index with fewer gives all that it has.
            depth: passages a query that the re-ranker reads; 0 keeps the order of what was found. By default
                as many as a `best` folder has found to be good, or `DEPTH`.
            fuse: search with BM25 as well and fuse what the two find, `rrf` by `fusion.reciprocal_rank` or
                `weighted` by `fusion.weighted`; by default the retriever searches alone.
            weight: of BM25 in `weighted`, from 0 (the retriever alone) to 1 (BM25 alone).
            progress: name of the re-ranker's progress bar; without it there is none.

        Raises:
            ValueError: `queries` is no list of strings, a query is empty, `k` is below 1 or `depth` below 0,
                the weight does not go with `fuse`, or the index has no BM25.
        """
        texts = check_request(queries, k, depth, fuse, weight)
        depth = self.depth_of(depth)
        with device.using(self.place), unchanging(self._joined):
            vectors = forward.encode_queries(self.retriever, texts)
            found = self.find(texts, vectors, max(k, depth), fuse=fuse, weight=weight)
            scores = np.zeros(0, np.float32)
            if pairs := [pair for one in found for pair in one.pairs(depth)]:
                scores = forward.score_pairs(self.reranker, *zip(*pairs, strict=True), progress=progress)
        return results_of(found, k, depth, scores)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def has_bm25(self) -> bool:
        """Whether a search may `fuse`."""
        return self._index.has_bm25

    def depth_of(self, depth: int | None) -> int:
        """How many passages a query are re-ranked where a search asks for this depth."""
        return (self.depth if depth is None else depth) if self.reranker else 0

    def find(
        self,
        queries: Sequence[str],
        vectors: np.ndarray,
        k: int,
        *,
        fuse: Fusion | None = None,
        weight: float | None = None,
    ) -> list[Found]:
        """Find the `k` best passages of queries whose vectors `[queries, hidden]` are known; see `search`."""
        names = [str(number) for number in range(len(queries))]
        if fuse:
            run, passages, inner = self._index.fused(names, vectors, queries, k, fuse, weight)
        else:
            run, passages = self._index.find(names, vectors, k)
            inner = {name: [hit.score for hit in run[name]] for name in names}
        return [
            Found(query, run[name], inner[name], passages) for name, query in zip(names, queries, strict=True)
        ]

    def candidates(self, queries: Queries, k: int = fusion.POOL) -> tuple[Candidates, Candidates]:
        """Return the `k` best passages of every query by the retriever, and those by BM25.

        Raises:
            ValueError: the index has no BM25.
        """
        texts = [query.text for query in queries.values()]
        with device.using(self.place):
            vectors = forward.encode_queries(self.retriever, texts)
            return self._index.both(list(queries), vectors, texts, k)


def check_request(
    queries: Sequence[str], k: int, depth: int | None, fuse: str | None = None, weight: float | None = None
) -> list[str]:
    """Return the queries as a list, or refuse them or another argument; see `SearchEngine.search`."""
    at_least(1, k=k)
    at_least(0, depth=depth)
    check_fusion(fuse, weight)
    texts = forward.text_list("queries", queries)
    if not all(text.strip() for text in texts):
        raise ValueError("an empty query: give some words to search for")
    return texts
