"""Vectors → nearest neighbours by inner product, with passage ids, and the folder that keeps them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from rocketqa_paddle.data import store
from rocketqa_paddle.data.store import IDS, Ids, texts_record
from rocketqa_paddle.runtime.folders import Contents, whole
from rocketqa_paddle.runtime.storage import (
    array_writer,
    atomic,
    fingerprint,
    map_array,
    read_json,
    write_json,
    write_text,
)
from rocketqa_paddle.search import bm25
from rocketqa_paddle.search.vectors import Vectors
from rocketqa_paddle.settings import IndexSettings

if TYPE_CHECKING:
    import faiss  # imported where it is used: a program that only encodes need not wait for it

FORMAT_VERSION = 3
_FAISS_ALONE = (1, 2)  # versions that kept the vectors in faiss's file; the first had no record of the texts
META, VECTORS, FAISS = "meta.json", "vectors.npy", "index.faiss"
CONTENTS = Contents(
    "index",
    names=(META, VECTORS, FAISS, *store.FILES, *bm25.FILES),
    markers=(META,),
    is_ours=lambda values: {"format_version", "metric", "dimension"} <= values.keys(),
)

EXACT = IndexSettings()
_QUERY_BLOCK = 1024  # queries searched together
_ROW_BLOCK = 1 << 16  # vectors that they are compared with at once
_SPARE = 8  # further candidates of an exact search: scores of blocks may differ in their last bits
_GATHERED = 1 << 24  # numbers of vectors that are scored again at once
_SAMPLED_ROWS = 4096  # vectors that are checked for NaN when an index is opened
_TRAINED_ON = 1 << 18  # vectors that an index learns from at most
_GPU_DEPTH = 2048  # candidates of a query that a GPU of faiss finds at most
_OPQ_CENTROIDS = 256  # what faiss learns an OPQ with, whatever PQ follows


class VectorIndex:
    """Finds passages by the inner product of vectors.

    The search is exact, or `settings.factory` names an index of faiss that finds candidates, whose scores are
    then computed from the vectors. Passages of equal scores come in the order of their rows.

    `vectors` are `[passages, hidden]`, all finite, and `ids` has the passage id of every row. `model` is the
    digest of the model that made them. With `gpu`, that GPU searches if faiss has this kind of index on GPUs.
    ValueError is raised if there are no vectors, not one for every id, or faiss knows no such index.
    """

    def __init__(
        self,
        vectors: np.ndarray | Vectors,
        ids: Sequence[str],
        model: str = "",
        gpu: int | None = None,
        settings: IndexSettings = EXACT,
    ) -> None:
        if not len(ids):
            raise ValueError("no vectors: an index needs at least one passage")
        self.all = vectors if isinstance(vectors, Vectors) else Vectors([np.asarray(vectors)])
        if len(self.all) != len(ids):
            raise ValueError(f"{len(self.all)} vectors for {len(ids)} passage ids")
        for _, block in self.all.blocks(_ROW_BLOCK):
            if not np.isfinite(block).all():
                raise ValueError("vectors hold NaN or infinity: the model that made them is broken")
        self.ids, self.model, self.settings = ids, model, settings
        self._approximate = None if settings.is_exact else _build(self.all, settings)
        self._set_up(gpu)

    def _set_up(self, gpu: int | None) -> None:
        if self._approximate:
            _set_parameters(self._approximate, self.settings)
        self._on_gpu = None if gpu is None else _gpu_index(self._approximate or self.all, self.settings, gpu)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self.all.dimension

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` best passages for query vectors `[queries, hidden]`.

        Return inner products, float32, and rows, int64, best first, both `[queries, min(k, passages)]`. Raise
        ValueError if the queries are of another dimension, or hold NaN or infinity.
        """
        check_queries(queries, self.dimension)
        queries, k = np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self))
        blocks = np.split(queries, range(_QUERY_BLOCK, len(queries), _QUERY_BLOCK))
        found = [self._search_block(block, k) for block in blocks]
        scores, rows = map(np.concatenate, zip(*found, strict=True))
        return scores, rows

    def _search_block(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(k + _SPARE, len(self))
        if self._approximate:
            count = min(max(count, self.settings.candidates or 0), len(self))
        index = self._on_gpu if self._on_gpu and count <= _GPU_DEPTH else self._approximate
        rows = index.search(queries, count)[1] if index else self._exact(queries, count)
        scores = self.scores(queries, rows)
        order = np.lexsort((rows, -scores))[:, :k]
        scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        if not self._approximate and not np.isfinite(scores).all():
            raise ValueError("the index holds NaN or infinity: it is damaged, build it again")
        return scores, rows

    def _exact(self, queries: np.ndarray, count: int) -> np.ndarray:
        """The rows of the best `count` vectors, block by block of the vectors: `[queries, count]`."""
        faiss = _import_faiss()
        scores, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        for first, block in self.all.blocks(_ROW_BLOCK):
            more = faiss.knn(queries, block, min(count, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            if (more[1] < 0).any():
                raise ValueError("the index holds NaN or infinity: it is damaged, build it again")
            scores = np.concatenate([scores, more[0]], axis=1)
            rows = np.concatenate([rows, more[1] + first], axis=1)
            best = np.lexsort((rows, -scores))[:, :count]
            scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
        return rows

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the inner products of queries with some rows each, float32 `[queries, count]`.

        They are minus infinity for the row -1. They do not depend on what else is computed with them, as
        those of a matrix product do, so they are the scores that `search` gives.
        """
        out = np.empty(rows.shape, np.float32)
        step = max(1, _GATHERED // max(1, rows.shape[1] * self.dimension))
        for first in range(0, len(queries), step):
            part = slice(first, first + step)
            vectors = self.all.take(np.maximum(rows[part], 0))
            np.einsum("qd,qkd->qk", queries[part], vectors, out=out[part])
        out[rows < 0] = -np.inf
        return out

    def vectors(self, first: int, count: int) -> np.ndarray:
        """Return the vectors of `count` rows from `first` on, `[count, hidden]`."""
        return self.all.take(np.arange(first, first + count))

    def named(self, ids: Sequence[str], model: str) -> VectorIndex:
        """Return this index with other ids, one a vector, and another model's digest."""
        other = copy.copy(self)
        other.ids, other.model = ids, model
        return other

    def save(self, folder: str | Path, texts: Mapping[str, Any] | None = None) -> None:
        """Write the vectors, the index of faiss if there is one, and `meta.json` into an existing folder.

        `texts` is what `store.write_store` returned, if the folder has a store of the passages. Otherwise the
        ids are written as well.
        """
        folder = Path(folder)
        if bad := next((i for i in self.ids if "\n" in i or "\r" in i), None):
            raise ValueError(f"passage id {bad!r} has a line end in it, which an index cannot keep")
        shape = (len(self), self.dimension)
        with atomic(folder / VECTORS) as new, array_writer(new, shape, self.all.parts[0].dtype) as write:
            for part in self.all.parts:
                write(part)
        if self._approximate:
            with atomic(folder / FAISS) as new:
                try:
                    _import_faiss().write_index(self._approximate, str(new))
                except RuntimeError as error:
                    raise OSError(error) from error
        if not texts:
            write_text(folder / IDS, "".join(f"{i}\n" for i in self.ids))
        content = {"content": self._content(self._sampled_step())}
        write_json(folder / META, self._meta() | content | ({"texts": dict(texts)} if texts else {}))

    def _meta(self) -> dict[str, Any]:
        sizes = {"dimension": self.dimension, "metric": "inner_product", "count": len(self)}
        kind = {"index": self.settings.described()} if not self.settings.is_exact else {}
        return {"format_version": FORMAT_VERSION, **sizes, "model": self.model, **kind}

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> VectorIndex:
        """Open a folder that `save` wrote. The `model` that will encode the queries is checked by its digest.

        The vectors are mapped from the file, so that processes share them. Replace an index in use by
        renaming, as `save` does: bytes written into the file would be searched at once, with the old ids.

        Raises:
            FileNotFoundError: a file of the index is missing.
            ValueError: another model made the index, its files do not fit each other, or its vectors are of
                another metric or hold NaN. Of many vectors only some are looked at, because to open an index
                is not to read it; `search` looks at the scores of all that it returns.
        """
        folder = whole(folder)
        if not (folder / META).is_file():
            raise FileNotFoundError(f"{folder / META}: not there; make an index with `rocketqa index`")
        meta = read_json(folder / META)
        check_model(folder, meta.get("model"), model)
        index = cls.__new__(cls)
        index.ids, index.model = Ids(folder), meta.get("model", "")
        index.settings, index._approximate = IndexSettings.from_described(meta.get("index"), folder), None
        old = meta.get("format_version") in _FAISS_ALONE
        index.all = _read_flat(folder / FAISS) if old else _map_vectors(folder / VECTORS)
        if not index.settings.is_exact:
            index._approximate = _read(folder / FAISS)
        announced = {
            key: value for key, value in meta.items() if key not in ("format_version", "texts", "content")
        }
        known = old or meta.get("format_version") == FORMAT_VERSION
        counted = {len(index.all), len(index)} | {a.ntotal for a in [index._approximate] if a}
        if not known or len(counted) > 1 or {"format_version": FORMAT_VERSION, **announced} != index._meta():
            found = f"{len(index.all)} vectors and {len(index)} ids ({index._meta()})"
            raise ValueError(
                f"{folder}: meta.json announces {str(meta)[:300]}, but the files hold {found}: the folder is "
                "damaged, build the index again"
            )
        name = FAISS if old else VECTORS
        if not np.isfinite(index._every(index._sampled_step())).all():
            raise ValueError(f"{folder / name} holds NaN or infinity: build the index again")
        written = meta.get("content", {})
        every = written.get("every") if isinstance(written, dict) else None
        if written and (type(every) is not int or every < 1 or written != index._content(every)):
            raise ValueError(
                f"{folder}: {name} or {IDS} is of another index than {META}: build the index again"
            )
        index._set_up(None)
        return index

    def _sampled_step(self) -> int:
        return -(-len(self) // _SAMPLED_ROWS)

    def _every(self, step: int) -> np.ndarray:
        """Vectors that are spread evenly over the index: `[rows, hidden]`."""
        return self.all.take(np.arange(0, len(self), step))

    def _content(self, step: int) -> dict[str, Any]:
        """A fingerprint of all ids and of some vectors, because to open an index is not to read it."""
        ids = self.ids.bytes[:-1] if isinstance(self.ids, Ids) else "\n".join(self.ids)
        return {"every": step, "fingerprint": fingerprint([ids, self._every(step)])}


def check_queries(queries: np.ndarray, dimension: int) -> None:
    """Refuse query vectors `[queries, hidden]` of another dimension, or with NaN or infinity.

    Raises:
        ValueError: says which.
    """
    if queries.shape[1] != dimension:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the index {dimension}: "
            "search with the model that built the index"
        )
    if not np.isfinite(queries).all():
        raise ValueError("query vectors hold NaN or infinity: the model that made them is broken")


def check_model(place: object, made_by: object, model: str | None) -> None:
    """Refuse an index at a place if the model that encodes the queries, told by its digest, did not make it.

    Raises:
        ValueError: names both.
    """
    if model is not None and made_by != model:
        raise ValueError(
            f"{place}: made by model {str(made_by)[:80]}, but the checkpoint is {model}: "
            "search with the checkpoint that built the index, or build it again"
        )


def is_whole(folder: str | Path, settings: IndexSettings | None = None, *, with_bm25: bool = False) -> bool:
    """Tell whether an index folder and the texts in it are as they were written.

    It also has to be of the kind that `settings` name, if they are given, and have a `BM25Index` if that is
    asked for. This reads all texts: it is for a program that wants to keep an index instead of making it
    again.
    """
    folder = whole(folder)
    try:
        kind = VectorIndex.load(folder).settings
        if settings not in (None, kind):
            return False
        if with_bm25:
            bm25.BM25Index.load(folder)
        written = read_json(folder / META).get("texts")
        return written is None or written == texts_record(folder)
    except (ValueError, OSError):
        return False


# faiss --------------------------------------------------------------------------------------------


def _import_faiss() -> ModuleType:
    """Import faiss without its log of how it chose a binary, which Paddle's handler would print."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


def _gpu_index(index: faiss.Index | Vectors, settings: IndexSettings, gpu: int) -> faiss.Index | None:
    """Copy an index, or vectors for an exact search, to a GPU; warn and return None if faiss cannot.

    On GPUs, faiss has IVF with Flat, SQ or PQ, also behind a transformation of the vectors such as OPQ, but
    no HNSW and not every number of parts of PQ (faiss/gpu/GpuCloner.cpp).
    """
    faiss = _import_faiss()
    if not hasattr(faiss, "GpuIndexFlatIP"):
        warnings.warn("faiss is built for CPUs: searching on the CPU (install faiss-gpu-cu12)", stacklevel=4)
        return None
    if not isinstance(index, Vectors):
        try:
            return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index)
        except RuntimeError as error:
            told = f"faiss searches {settings.factory} on the CPU, not on the GPU ({_reason(error)})"
            warnings.warn(told, stacklevel=4)
            return None
    return _exact_on_gpu(index, gpu)


def _exact_on_gpu(vectors: Vectors, gpu: int) -> faiss.Index:
    faiss = _import_faiss()
    options = faiss.GpuIndexFlatConfig()
    options.device = gpu
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), vectors.dimension, options)
    for _, block in vectors.blocks(_ROW_BLOCK):
        index.add(block)
    return index


def _build(vectors: Vectors, settings: IndexSettings) -> faiss.Index:
    """Make an index of faiss, which learns from a sample and takes the vectors in blocks.

    Raises:
        ValueError: faiss knows no such index, or it cannot be made of so few vectors.
    """
    faiss = _import_faiss()
    try:
        index = faiss.index_factory(vectors.dimension, settings.factory, faiss.METRIC_INNER_PRODUCT)
        _set_parameters(index, settings)
        if not index.is_trained:
            index.train(vectors.take(np.arange(0, len(vectors), -(-len(vectors) // _TRAINED_ON))))
    except RuntimeError as error:
        raise ValueError(_cannot_be(settings, len(vectors), vectors.dimension, _reason(error))) from None
    for _, block in vectors.blocks(_ROW_BLOCK):
        index.add(block)
    return index


def check_factory(settings: IndexSettings, dimension: int) -> None:
    """Refuse an index that faiss does not know, before vectors are made for it.

    Raises:
        ValueError: names the setting.
    """
    if settings.is_exact:
        return
    faiss = _import_faiss()
    try:
        index = faiss.index_factory(dimension, settings.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"factory {settings.factory!r}: faiss knows no such index of {dimension} dimensions "
            f"({str(error)[-100:]}); try HNSW32, or IVF1024,Flat"
        ) from None
    _set_parameters(index, settings)


def check_size(settings: IndexSettings, dimension: int, passages: int) -> None:
    """Refuse fewer passages than an index has lists, or its PQ centroids, before vectors are made for them.

    Raises:
        ValueError: names the setting.
    """
    if settings.is_exact:
        return
    faiss = _import_faiss()
    index = faiss.index_factory(dimension, settings.factory, faiss.METRIC_INNER_PRODUCT)
    least, reason = max(_needed(index), default=(0, ""))
    if least > passages:
        raise ValueError(_cannot_be(settings, passages, dimension, reason))


def _needed(index: faiss.Index) -> Iterator[tuple[int, str]]:
    """How many vectors the parts of an index learn from at least, and why; faiss refuses fewer."""
    faiss = _import_faiss()
    index = faiss.downcast_index(index)
    if hasattr(index, "nlist"):
        yield index.nlist, f"it has {index.nlist} lists"
    if hasattr(index, "pq"):
        yield index.pq.ksub, f"its PQ has {index.pq.ksub} centroids"
    if hasattr(index, "chain"):
        chain = (faiss.downcast_VectorTransform(index.chain.at(n)) for n in range(index.chain.size()))
        if any(isinstance(transform, faiss.OPQMatrix) for transform in chain):
            yield _OPQ_CENTROIDS, f"its OPQ has {_OPQ_CENTROIDS} centroids"
    for name in ("index", "quantizer", "storage", "base_index", "refine_index"):
        if (part := getattr(index, name, None)) is not None:
            yield from _needed(part)


def _reason(error: RuntimeError) -> str:
    """What faiss says, without where in its sources."""
    return str(error).rpartition("Error")[2].strip(": ")[:200]


def _cannot_be(settings: IndexSettings, passages: int, dimension: int, reason: str) -> str:
    return (
        f"factory {settings.factory!r}: faiss cannot make such an index of {passages} vectors of "
        f"{dimension} dimensions ({reason}); try HNSW32, or IVF with fewer lists"
    )


def _set_parameters(index: faiss.Index, settings: IndexSettings) -> None:
    """Set parameters of the search, such as `nprobe=16`; raise ValueError for one that the index has not."""
    if not settings.parameters:
        return
    try:
        _import_faiss().ParameterSpace().set_index_parameters(index, settings.parameters)
    except RuntimeError as error:
        raise ValueError(
            f"parameters {settings.parameters!r} do not fit an index {settings.factory!r}: expected such as "
            f"nprobe=16 for IVF or efSearch=64 for HNSW ({str(error)[-100:]})"
        ) from None


def _map_vectors(path: Path) -> Vectors:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; make an index with `rocketqa index`")
    try:
        vectors = map_array(path)
    except ValueError as error:
        raise ValueError(f"{path.parent}: {path.name} is damaged, build the index again ({error})") from None
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
        given = f"{vectors.dtype} {list(vectors.shape)}"
        raise ValueError(f"{path}: {given}, expected vectors of float32 or float16: build the index again")
    return Vectors([vectors])


def _read_flat(path: Path) -> Vectors:
    """The vectors of an index of older versions, an `IndexFlat` of faiss."""
    faiss, index = _import_faiss(), _read(path)
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        kind = f"a {type(index).__name__} of faiss's metric {index.metric_type}"
        problem = f"{kind}, expected an IndexFlat of the inner product"
        raise ValueError(f"{path}: {problem}: build the index again with `rocketqa index`")
    values = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return Vectors([values], owner=index)


def _read(path: Path) -> faiss.Index:
    """Map an index from the file; read it where faiss (before 1.11) or the file system cannot map."""
    faiss = _import_faiss()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; make an index with `rocketqa index`")
    damage: Exception | None = None
    for flag in _flags(faiss):
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError as error:
            damage = error
    raise ValueError(f"{path.parent}: {path.name} is damaged, build the index again ({damage})")


def _flags(faiss: ModuleType) -> Iterator[int]:
    yield getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    yield 0
