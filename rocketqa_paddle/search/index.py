"""Vectors → nearest neighbours by inner product: faiss, with passage ids, and the folder that keeps them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from rocketqa_paddle.runtime.folders import Contents, whole
from rocketqa_paddle.runtime.storage import atomic, fingerprint, read_json, write_json, write_text
from rocketqa_paddle.search.texts import OFFSETS, TEXTS, texts_record

if TYPE_CHECKING:
    import faiss  # imported where it is used: a program that only encodes need not wait for it

FORMAT_VERSION = 2
_READ_VERSIONS = (1, 2)  # the first one had no record of the texts
META, VECTORS, IDS = "meta.json", "index.faiss", "ids.txt"
CONTENTS = Contents(
    "index",
    names=(META, VECTORS, IDS, TEXTS, OFFSETS),
    markers=(META,),
    is_ours=lambda values: {"format_version", "metric", "dimension"} <= values.keys(),
)

_QUERY_BLOCK = 1024  # queries searched together
_SAMPLED_ROWS = 4096  # vectors that are checked for NaN when an index is opened


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
        scores, rows = map(np.concatenate, zip(*found, strict=True))
        if (rows < 0).any() or not np.isfinite(scores).all():
            raise ValueError("the index holds NaN or infinity: it is damaged, build it again")
        return scores, rows

    def vectors(self, first: int, count: int) -> np.ndarray:
        """Return the vectors of `count` rows from `first` on, `[count, hidden]`."""
        return self._index.reconstruct_n(first, count)

    def save(self, folder: str | Path, texts: Mapping[str, Any] | None = None) -> None:
        """Write `index.faiss`, `ids.txt` and `meta.json` into an existing folder.

        `texts` is what `texts.write_texts` returned, if the folder has the passages' texts.
        """
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
        content = {"content": self._content(self._sampled_step())}
        write_json(folder / META, self._meta() | content | ({"texts": dict(texts)} if texts else {}))

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
            ValueError: another model made the index, its files do not fit each other, or its vectors are of
                another metric or hold NaN. Of many vectors only some are looked at, because to open an index
                is not to read it; `search` looks at the scores of all that it returns.
        """
        folder = whole(folder)
        for name in (META, VECTORS, IDS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: not there; make an index with `rocketqa index`")
        meta = read_json(folder / META)
        if model is not None and meta.get("model") != model:
            raise ValueError(
                f"{folder}: made by model {str(meta.get('model'))[:80]}, but the checkpoint is {model}: "
                "search with the checkpoint that built the index, or build it again"
            )
        index = cls.__new__(cls)
        try:
            index.ids = (folder / IDS).read_text(encoding="utf-8").split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder}: ids.txt is damaged, build the index again ({error})") from None
        index.model = meta.get("model", "")
        index._index = _read(folder / VECTORS)
        announced = {
            key: value for key, value in meta.items() if key not in ("format_version", "texts", "content")
        }
        known = meta.get("format_version") in _READ_VERSIONS and index._index.ntotal == len(index)
        if not known or {"format_version": FORMAT_VERSION, **announced} != index._meta():
            found = f"{index._index.ntotal} vectors and {len(index)} ids ({index._meta()})"
            raise ValueError(
                f"{folder}: meta.json announces {str(meta)[:300]}, but the files hold {found}: the folder is "
                "damaged, build the index again"
            )
        if not np.isfinite(index._every(index._sampled_step())).all():
            raise ValueError(f"{folder / VECTORS} holds NaN or infinity: build the index again")
        written = meta.get("content", {})
        every = written.get("every") if isinstance(written, dict) else None
        if written and (type(every) is not int or every < 1 or written != index._content(every)):
            raise ValueError(
                f"{folder}: {VECTORS} or {IDS} is of another index than {META}: build the index again"
            )
        return index

    def _sampled_step(self) -> int:
        return -(-len(self) // _SAMPLED_ROWS)

    def _every(self, step: int) -> np.ndarray:
        """Vectors that are spread evenly over the index: `[rows, hidden]`."""
        return self._index.reconstruct_batch(np.arange(0, len(self), step))

    def _content(self, step: int) -> dict[str, Any]:
        """A fingerprint of all ids and of some vectors, because to open an index is not to read it."""
        return {"every": step, "fingerprint": fingerprint(["\n".join(self.ids), self._every(step)])}


def is_whole(folder: str | Path) -> bool:
    """Tell whether an index folder and the texts in it are as they were written.

    This reads all texts: it is for a program that wants to keep an index instead of making it again.
    """
    folder = whole(folder)
    try:
        VectorIndex.load(folder)
        written = read_json(folder / META).get("texts")
        return written is None or written == texts_record(folder)
    except (ValueError, OSError):
        return False


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
            index = faiss.read_index(str(path), flag)
        except RuntimeError as error:
            damage = error
            continue
        if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            kind = f"a {type(index).__name__} of faiss's metric {index.metric_type}"
            problem = f"{kind}, expected an IndexFlat of the inner product"
            raise ValueError(f"{path}: {problem}: build the index again with `rocketqa index`")
        return index
    raise ValueError(f"{path.parent}: {path.name} is damaged, build the index again ({damage})")
