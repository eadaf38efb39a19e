"""Vectors to nearest neighbours by inner product: faiss, with passage ids and a label on the box."""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rocketqa_paddle.records import Passage
from rocketqa_paddle.runtime.storage import read_json, whole, write_json

if TYPE_CHECKING:
    import faiss  # where it is used: whoever only encodes needs not wait for it, nor read its log

FORMAT_VERSION = 1

TEXTS = "passages.jsonl"
"""The file of an index folder with the passages' texts."""


class VectorIndex:
    """An exact inner-product index over passages.

    Args:
        vectors: float32 `[passages, hidden]`, or several such arrays to join.
        ids: one passage id a row.
        model: digest of the model that made the vectors; kept in `meta.json`.
        gpu: search on this GPU, if faiss is built for GPUs.
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
        """Hidden units of a vector."""
        return self._index.d

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and row numbers, each `[queries, k]`, best first; fewer where the index is smaller."""
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, the index {self.dimension}: "
                "search with the model that built the index"
            )
        if not np.isfinite(queries).all():
            raise ValueError("query vectors hold NaN or infinity: the model that made them is broken")
        return self._index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self)))

    def vectors(self, first: int, count: int) -> np.ndarray:
        """Some rows, `[count, hidden]`."""
        return self._index.reconstruct_n(first, count)

    def save(self, folder: str | Path) -> None:
        """Write `index.faiss`, `ids.txt` and `meta.json` into an existing folder."""
        import faiss

        folder = Path(folder)
        if bad := next((i for i in self.ids if "\n" in i or "\r" in i), None):
            raise ValueError(f"passage id {bad!r} has a line end in it, which an index cannot keep")
        new = folder / ".index.faiss.new"  # the vectors may be mapped from the file that this one replaces
        faiss.write_index(self._index, str(new))
        new.replace(folder / "index.faiss")
        (folder / "ids.txt").write_text("".join(f"{i}\n" for i in self.ids), encoding="utf-8")
        write_json(folder / "meta.json", self._meta())

    def _meta(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "dimension": self.dimension,
            "metric": "inner_product",
            "count": len(self),
            "model": self.model,
        }

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> VectorIndex:
        """Open an index folder. Its vectors stay in the file, where faiss can: processes share them.

        Replace an index that is in use as `save` does, by renaming: what is written into the file itself is
        searched at once, with the old ids.

        Args:
            folder: what `save` wrote.
            model: digest of the model that will make the queries; None skips the check.

        Raises:
            FileNotFoundError: not a whole index folder.
            ValueError: another model made it, or the files disagree.
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


def _empty_index(dimension: int, gpu: int | None) -> faiss.Index:
    import faiss

    if gpu is None:
        return faiss.IndexFlatIP(dimension)
    if not hasattr(faiss, "GpuIndexFlatIP"):
        warnings.warn("faiss is built for CPUs: searching on the CPU (install faiss-gpu-cu12)", stacklevel=3)
        return faiss.IndexFlatIP(dimension)
    options = faiss.GpuIndexFlatConfig()
    options.device = gpu
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dimension, options)


def _read(path: Path) -> faiss.Index:
    """Map the vectors from the file, with faiss 1.11 and where the file system can; else read them."""
    import faiss

    for flag in (getattr(faiss, "IO_FLAG_MMAP_IFC", 0), 0):
        try:
            return faiss.read_index(str(path), flag)
        except RuntimeError as error:
            damage = error
    raise ValueError(f"{path.parent}: {path.name} is damaged, build the index again ({damage})")


def write_texts(folder: str | Path, passages: Iterable[Passage]) -> None:
    """Keep the passages beside their vectors, as JSON lines: any text at all comes back as it was."""
    with open(Path(folder) / TEXTS, "w", encoding="utf-8") as file:
        for passage in passages:
            file.write(json.dumps([passage.id, passage.title, passage.text], ensure_ascii=False) + "\n")


def read_texts(folder: str | Path, ids: Container[str]) -> dict[str, Passage]:
    """The passages of an index folder that have one of these ids.

    Raises:
        FileNotFoundError: the folder keeps no texts.
    """
    path = whole(folder) / TEXTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; make the index with `rocketqa index`, which keeps the texts"
        )
    with open(path, encoding="utf-8") as file:
        passages = (Passage(*json.loads(line)) for line in file)
        return {passage.id: passage for passage in passages if passage.id in ids}
