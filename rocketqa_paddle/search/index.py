"""Vectors → nearest neighbours by inner product: faiss, with passage ids, and the folder that keeps them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from rocketqa_paddle.runtime.folders import Contents, whole
from rocketqa_paddle.runtime.storage import atomic, read_json, write_json, write_text
from rocketqa_paddle.search.texts import OFFSETS, TEXTS

if TYPE_CHECKING:
    import faiss  # imported where it is used: a program that only encodes need not wait for it

FORMAT_VERSION = 1
META, VECTORS, IDS = "meta.json", "index.faiss", "ids.txt"
CONTENTS = Contents(
    "index",
    names=(META, VECTORS, IDS, TEXTS, OFFSETS),
    markers=(META,),
    is_ours=lambda values: {"format_version", "metric", "dimension"} <= values.keys(),
)

_QUERY_BLOCK = 1024  # queries searched together


class VectorIndex:
    """An exact inner-product index over passages.

    `vectors` are `[passages, hidden]`, or several such arrays to join, all finite, and `ids` has the passage
    id of every row. `model` is the digest of the model that made them. With `gpu`, that GPU searches if faiss
    can. ValueError is raised if there are no vectors, or not one for every id.
    """

    def __init__(
        self,
        vectors: np.ndarray | Iterable[np.ndarray],
        ids: Sequence[str],
        model: str = "",
        gpu: int | None = None,
    ) -> None:
        if not len(ids):
            raise ValueError("no vectors: an index needs at least one passage")
        self.ids, self.model = list(ids), model
        self._index = None
        for part in [vectors] if isinstance(vectors, np.ndarray) else vectors:
            if not np.isfinite(part).all():
                raise ValueError("vectors hold NaN or infinity: the model that made them is broken")
            if self._index is None:
                self._index = _empty_index(part.shape[1], gpu)
            self._index.add(np.ascontiguousarray(part, dtype=np.float32))
        count = self._index.ntotal if self._index else 0
        if count != len(ids):
            raise ValueError(f"{count} vectors for {len(ids)} passage ids")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._index.d

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` best passages for query vectors `[queries, hidden]`.

        Return inner products, float32, and rows, int64, best first, both `[queries, min(k, passages)]`. Raise
        ValueError if the queries are of another dimension, or hold NaN or infinity.
        """
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, the index {self.dimension}: "
                "search with the model that built the index"
            )
        if not np.isfinite(queries).all():
            raise ValueError("query vectors hold NaN or infinity: the model that made them is broken")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        blocks = np.split(queries, range(_QUERY_BLOCK, len(queries), _QUERY_BLOCK))
        found = [self._index.search(block, min(k, len(self))) for block in blocks]
        return tuple(map(np.concatenate, zip(*found, strict=True)))

    def vectors(self, first: int, count: int) -> np.ndarray:
        """Return the vectors of `count` rows from `first` on, `[count, hidden]`."""
        return self._index.reconstruct_n(first, count)

    def save(self, folder: str | Path) -> None:
        """Write `index.faiss`, `ids.txt` and `meta.json` into an existing folder."""
        faiss = _import_faiss()
        folder = Path(folder)
        if bad := next((i for i in self.ids if "\n" in i or "\r" in i), None):
            raise ValueError(f"passage id {bad!r} has a line end in it, which an index cannot keep")
        with atomic(folder / VECTORS) as new:  # the vectors may be mapped from the old file
            try:
                faiss.write_index(self._index, str(new))
            except RuntimeError as error:
                raise OSError(error) from error
        write_text(folder / IDS, "".join(f"{i}\n" for i in self.ids))
        write_json(folder / META, self._meta())

    def _meta(self) -> dict[str, Any]:
        sizes = {"dimension": self.dimension, "metric": "inner_product", "count": len(self)}
        return {"format_version": FORMAT_VERSION, **sizes, "model": self.model}

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> VectorIndex:
        """Open a folder that `save` wrote. The `model` that will encode the queries is checked by its digest.

        faiss maps the vectors from the file if it can, so that processes share them. Replace an index in use
        by renaming, as `save` does: bytes written into the file would be searched at once, with the old ids.

        Raises:
            FileNotFoundError: a file of the index is missing.
            ValueError: another model made the index, or its files do not fit each other.
        """
        folder = whole(folder)
        for name in ("meta.json", "index.faiss", "ids.txt"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: not there; make an index with `rocketqa index`")
        meta = read_json(folder / "meta.json")
        if model is not None and meta.get("model") != model:
            raise ValueError(
                f"{folder}: made by model {meta.get('model')}, but the checkpoint is {model}: "
                "search with the checkpoint that built the index, or build it again"
            )
        index = cls.__new__(cls)
        index.ids = (folder / "ids.txt").read_text(encoding="utf-8").split("\n")[:-1]
        index.model = meta.get("model", "")
        index._index = _read(folder / "index.faiss")
        if index._meta() != meta or index._index.ntotal != len(index):
            raise ValueError(
                f"{folder}: meta.json announces {meta}, but the files hold {index._index.ntotal} vectors and "
                f"{len(index)} ids ({index._meta()}): the folder is damaged, build the index again"
            )
        return index


def _import_faiss() -> ModuleType:
    """Import faiss without its log of how it chose a binary, which Paddle's handler would print."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


def _empty_index(dimension: int, gpu: int | None) -> faiss.Index:
    faiss = _import_faiss()
    if gpu is not None and hasattr(faiss, "GpuIndexFlatIP"):
        options = faiss.GpuIndexFlatConfig()
        options.device = gpu
        return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dimension, options)
    if gpu is not None:
        warnings.warn("faiss is built for CPUs: searching on the CPU (install faiss-gpu-cu12)", stacklevel=3)
    return faiss.IndexFlatIP(dimension)


def _read(path: Path) -> faiss.Index:
    """Map the vectors from the file; read them where faiss (before 1.11) or the file system cannot map."""
    faiss = _import_faiss()
    for flag in (getattr(faiss, "IO_FLAG_MMAP_IFC", 0), 0):
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError as error:
            damage = error
    raise ValueError(f"{path.parent}: {path.name} is damaged, build the index again ({damage})")
