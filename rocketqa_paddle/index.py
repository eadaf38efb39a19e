"""Vectors to nearest neighbours by inner product: faiss, with passage ids and a label on the box."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import faiss
import numpy as np

from rocketqa_paddle.records import Passage

FORMAT_VERSION = 1


class VectorIndex:
    """An exact inner-product index over passages.

    Args:
        vectors: float32 `[passages, hidden]`.
        ids: one passage id a row.
        model: digest of the model that made the vectors; kept in `meta.json`.
        gpu: search on this GPU, if faiss is built for GPUs.
    """

    def __init__(
        self, vectors: np.ndarray, ids: Sequence[str], model: str = "", gpu: int | None = None
    ) -> None:
        if len(vectors) != len(ids):
            raise ValueError(f"{len(vectors)} vectors for {len(ids)} passage ids")
        if not len(ids):
            raise ValueError("no vectors: an index needs at least one passage")
        self.ids, self.model = list(ids), model
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        if gpu is not None and hasattr(faiss, "GpuIndexFlatIP"):
            options = faiss.GpuIndexFlatConfig()
            options.device = gpu
            self._index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), vectors.shape[1], options)
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Hidden units of a vector."""
        return self._index.d

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and row numbers, each `[queries, k]`, best first; fewer where the index is smaller."""
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, the index {self.dimension}: "
                "search with the model that built the index"
            )
        return self._index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self)))

    def save(self, folder: str | Path) -> None:
        """Write `index.faiss`, `ids.txt` and `meta.json` into an existing folder."""
        folder = Path(folder)
        faiss.write_index(self._index, str(folder / "index.faiss"))
        (folder / "ids.txt").write_text("".join(f"{i}\n" for i in self.ids), encoding="utf-8")
        meta = {
            "format_version": FORMAT_VERSION,
            "dimension": self.dimension,
            "metric": "inner_product",
            "count": len(self),
            "model": self.model,
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> VectorIndex:
        """Open an index folder.

        Args:
            folder: what `save` wrote.
            model: digest of the model that will make the queries; None skips the check.

        Raises:
            FileNotFoundError: not a whole index folder.
            ValueError: another model made it, or the files disagree.
        """
        folder = Path(folder)
        for name in ("meta.json", "index.faiss", "ids.txt"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: not there; make an index with `rocketqa index`")
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if model is not None and meta["model"] != model:
            raise ValueError(
                f"{folder}: made by model {meta['model']}, but the checkpoint is {model}: "
                "search with the checkpoint that built the index, or build it again"
            )
        index = cls.__new__(cls)
        index.ids = (folder / "ids.txt").read_text(encoding="utf-8").splitlines()
        index.model = meta["model"]
        index._index = faiss.read_index(str(folder / "index.faiss"))
        if not index._index.ntotal == len(index.ids) == meta["count"]:
            raise ValueError(
                f"{folder}: {index._index.ntotal} vectors, {len(index.ids)} ids, {meta['count']} announced: "
                "the folder is damaged, build the index again"
            )
        return index


def write_texts(folder: str | Path, passages: Iterable[Passage]) -> None:
    """Keep the passages beside their vectors, as JSON lines: any text at all comes back as it was."""
    with open(Path(folder) / "passages.jsonl", "w", encoding="utf-8") as file:
        for passage in passages:
            file.write(json.dumps([passage.id, passage.title, passage.text], ensure_ascii=False) + "\n")


def read_texts(folder: str | Path, ids: Container[str]) -> dict[str, Passage]:
    """The passages of an index folder that have one of these ids.

    Raises:
        FileNotFoundError: the folder keeps no texts.
    """
    path = Path(folder) / "passages.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; make the index with `rocketqa index`, which keeps the texts"
        )
    with open(path, encoding="utf-8") as file:
        passages = (Passage(*json.loads(line)) for line in file)
        return {passage.id: passage for passage in passages if passage.id in ids}
