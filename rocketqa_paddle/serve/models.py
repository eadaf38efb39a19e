"""What a folder has to serve: a search engine, a retriever, a re-ranker, or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint
from rocketqa_paddle.networks.tokenization import Packed
from rocketqa_paddle.runtime import device
from rocketqa_paddle.search.engine import Found, SearchEngine, find_best
from rocketqa_paddle.search.fusion import Fusion
from rocketqa_paddle.settings import COLLECTION

FIND_BUDGET = 64
"""Queries that are searched for together."""


@dataclass(frozen=True)
class Models:
    """The models that are served, and where they compute."""

    name: str
    place: str
    retriever: Checkpoint | None = None
    reranker: Checkpoint | None = None
    engine: SearchEngine | None = None

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        index: str | Path | None = None,
        reranker: str | Path | None = None,
        use_cuda: bool = False,
        *,
        uri: str | None = None,
        collection: str = COLLECTION,
        name: str = "",
    ) -> Models:
        """Read what there is. The arguments are those of `SearchEngine.open`; `name` is what clients see.

        Without an index, a retriever or a re-ranker is served alone. The errors are those of
        `SearchEngine.open` and `convert.read`.
        """
        path = Path(checkpoint)
        best = find_best(path)
        name = name or (path.resolve().parent if path.name == "best" else path).name
        if best or index or uri:
            engine = SearchEngine.open(checkpoint, index, reranker, use_cuda, uri=uri, collection=collection)
            return cls(name, engine.place, engine.retriever, engine.reranker, engine)
        place = device.find_device(use_cuda)
        with device.using(place):
            read = convert.read(checkpoint)
            other = convert.read(reranker, kind=CROSS) if reranker else None
        if read.kind == CROSS and other:
            raise ValueError(f"two re-rankers, {checkpoint} and {reranker}: give one of them")
        return cls(name, place, None, read) if read.kind == CROSS else cls(name, place, read, other)

    def told(self) -> str:
        """Say what is served."""
        parts = [f"a search engine of {len(self.engine):,} passages"] if self.engine else []
        parts += ["a retriever"] if self.retriever else []
        parts += ["a re-ranker"] if self.reranker else []
        return ", ".join(parts)


@dataclass(eq=False)
class Compute:
    """An operation on packed texts: vectors of queries or passages, or logits of pairs.

    Its rows are computed inside of `ready`.
    """

    checkpoint: Checkpoint
    kind: str
    budget: int
    """Tokens of a batch."""

    def cost(self, row: Packed) -> int:
        """The tokens of a row."""
        return len(row.token_ids)

    def compute(self, rows: list[Packed]) -> np.ndarray:
        """Vectors `[rows, hidden]`, or logits `[rows]`."""
        return self._computed(rows)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Prepare the network for this thread, as long as the block lasts."""
        with forward.computing(self.checkpoint, self.kind, self.budget) as self._computed:
            yield


@dataclass(frozen=True)
class Find:
    """An operation on queries and their vectors: what the index has for them."""

    engine: SearchEngine
    k: int
    fuse: Fusion | None
    weight: float | None
    budget: int = FIND_BUDGET

    def cost(self, row: tuple[str, np.ndarray]) -> int:
        """Every query costs the same."""
        return 1

    def compute(self, rows: list[tuple[str, np.ndarray]]) -> Sequence[Found]:
        """What is found for every query."""
        queries, vectors = zip(*rows, strict=True)
        return self.engine.find(queries, np.stack(vectors), self.k, fuse=self.fuse, weight=self.weight)
