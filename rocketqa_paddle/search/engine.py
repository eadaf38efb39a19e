"""`SearchEngine`: a retriever, its index and perhaps a re-ranker, opened once and searched many times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import CROSS, DUAL, Checkpoint
from rocketqa_paddle.records import Hit, Passages, Queries, Query, Result, Run
from rocketqa_paddle.runtime import device
from rocketqa_paddle.runtime.storage import read_json, write_json
from rocketqa_paddle.search import fusion, retrieval
from rocketqa_paddle.search.folder import IndexFolder
from rocketqa_paddle.search.fusion import Fusion, check_fusion
from rocketqa_paddle.search.milvus import MilvusIndex
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


class PassageIndex(Protocol):
    """What finds passages by vectors and by BM25: an index folder or a collection of Milvus.

    Without BM25, `fused` and `both` raise a ValueError that says how to build it.
    """

    def find(self, query_ids: Sequence[str], queries: np.ndarray, k: int) -> tuple[Run, Passages]:
        """Find the `k` best passages for query vectors `[queries, hidden]`: the hits, and their texts."""
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


class SearchEngine:
    """Finds passages for queries. Open one with `SearchEngine.open`."""

    def __init__(
        self,
        retriever: Checkpoint,
        index: PassageIndex,
        reranker: Checkpoint | None = None,
        place: str = "cpu",
        depth: int = DEPTH,
    ) -> None:
        self._retriever, self._index = retriever, index
        self._reranker, self._place, self.depth = reranker, place, depth

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
        if (checkpoint / "best" / "retriever").is_dir():
            checkpoint = checkpoint / "best"
        if (checkpoint / "retriever").is_dir():
            index = index or (None if uri else checkpoint / "index")
            if reranker is None and (checkpoint / "reranker").is_dir():
                reranker, depth = checkpoint / "reranker", read_depth(checkpoint)
            checkpoint = checkpoint / "retriever"
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
        return cls(dual, found, cross, place, depth)

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
        depth = (self.depth if depth is None else depth) if self._reranker else 0
        named = {str(number): Query(str(number), text) for number, text in enumerate(texts)}
        with device.using(self._place):
            vectors = forward.encode_queries(self._retriever, texts)
            if fuse:
                found, passages, inner = self._index.fused(
                    list(named), vectors, texts, max(k, depth), fuse, weight
                )
            else:
                found, passages = self._index.find(list(named), vectors, max(k, depth))
                inner = {name: [hit.score for hit in found[name]] for name in named}
            ordered = found
            if depth:
                ordered = retrieval.rerank(self._reranker, found, passages, named, depth, progress=progress)
        return [
            list(_results(found[name], inner[name], ordered[name][:k], passages, depth)) for name in named
        ]

    def candidates(self, queries: Queries, k: int = fusion.POOL) -> tuple[Candidates, Candidates]:
        """Return the `k` best passages of every query by the retriever, and those by BM25.

        Raises:
            ValueError: the index has no BM25.
        """
        texts = [query.text for query in queries.values()]
        with device.using(self._place):
            vectors = forward.encode_queries(self._retriever, texts)
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


def _results(
    found: Sequence[Hit], scores: Sequence[float], ordered: Sequence[Hit], passages: Passages, depth: int
) -> Iterator[Result]:
    """Join the hits in their final order with the retriever's scores of what was found.

    The first `depth` of what was found were re-ranked.
    """
    before = {hit.passage_id: (hit.rank, score) for hit, score in zip(found, scores, strict=False)}
    for hit in ordered:
        rank, score = before[hit.passage_id]
        reranked = hit.score if rank <= depth else None
        yield Result(hit.rank, hit.score, passages[hit.passage_id], score, reranked)
