"""Where `rocketqa index` keeps an index: in a folder, or in a collection of Milvus."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.settings import COLLECTION, IndexSettings

if TYPE_CHECKING:  # these import Paddle
    from rocketqa_paddle.data.dataset import Corpus
    from rocketqa_paddle.search.folder import IndexFolder
    from rocketqa_paddle.search.milvus import MilvusIndex
    from rocketqa_paddle.search.retrieval import CorpusIndex


def place_of(
    output: str | None,
    uri: str | None,
    collection: str,
    settings: IndexSettings,
    engine: str,
    vectors: str,
    bm25: bool,
) -> Folder | Milvus:
    """Where the index is to be.

    Raises:
        ValueError: flags are missing, or do not fit the engine.
    """
    if engine == "milvus":
        if not uri:
            raise ValueError("--engine milvus needs --uri, a file NAME.db or a server, http://HOST:19530")
        exact = {} if settings.is_exact else {"factory": settings.factory}
        leave_out("--engine milvus", output=output, vectors=vectors != "float32", **exact)
        return Milvus(uri, collection, bm25)
    leave_out("--engine faiss", uri=uri, collection=collection != COLLECTION)
    if not output:
        raise ValueError("index needs --output, the folder of the index")
    refuse_stream(output, "a folder")
    return Folder(output, settings, bm25)


def leave_out(flag: str, **others: object) -> None:
    """Refuse flags that do not go together; `others` are the values of those that must be empty or false."""
    if given := [name for name, value in others.items() if value]:
        raise ValueError(f"{flag} goes without --{given[0]}: leave it out")


class Folder:
    """An index folder."""

    def __init__(self, folder: str, settings: IndexSettings, bm25: bool) -> None:
        self.path, self._settings, self._bm25 = Path(folder), settings, bm25

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        """Refuse to replace what we did not write, before any work."""
        from rocketqa_paddle.search import bm25
        from rocketqa_paddle.search.index import CONTENTS

        CONTENTS.check(self.path)
        if (self.path / bm25.FOLDER).is_dir() and not self._bm25:
            told = f"{self.path} has BM25, and the index that replaces it will have none: give --bm25 true"
            warnings.warn(told, stacklevel=2)

    def check_model(self, dimension: int) -> None:
        """Refuse an index that cannot be made of such vectors."""
        from rocketqa_paddle.search.index import check_factory

        check_factory(self._settings, dimension)

    def check_texts(self, corpus: Corpus, dimension: int) -> None:
        """Refuse an index that cannot be made of so few passages."""
        from rocketqa_paddle.search.index import check_size

        check_size(self._settings, dimension, len(corpus))

    def open(self, model: str | None = None) -> IndexFolder:
        """Open the index; `model` is the digest of the one that has to have made it."""
        from rocketqa_paddle.search.folder import IndexFolder

        opened = IndexFolder(self.path, model)
        opened.need_bm25s("a change of an index with BM25")
        return opened

    def write(self, made: CorpusIndex, corpus: Corpus, model: str) -> None:
        """Write an encoded corpus; `model` is the digest of the retriever."""
        made.save(self.path, model, self._settings, bm25=self._bm25)


class Milvus:
    """A collection of Milvus. What is kept for a command that goes on lies beside the file, or here."""

    def __init__(self, uri: str, collection: str, bm25: bool) -> None:
        self._uri, self._collection, self._bm25 = uri, collection, bm25
        self.path = Path(collection if "://" in uri else uri)

    def __str__(self) -> str:
        from rocketqa_paddle.search.milvus_connection import shown

        return f"{shown(self._uri)}, {self._collection}"

    def check(self) -> None:
        """Refuse to replace what we did not write, before any work."""
        from rocketqa_paddle.search.milvus_building import check_replaceable

        check_replaceable(self._uri, self._collection)

    def check_model(self, dimension: int) -> None:
        """Milvus takes vectors of any size that there is."""

    def check_texts(self, corpus: Corpus, dimension: int) -> None:
        """Refuse passages that are too long."""
        from rocketqa_paddle.search.milvus_collection import check_lengths

        check_lengths(corpus.rows)

    def open(self, model: str | None = None) -> MilvusIndex:
        """Open the index; `model` is the digest of the one that has to have made it."""
        from rocketqa_paddle.search.milvus import MilvusIndex

        opened = MilvusIndex(self._uri, self._collection, model)
        if model:  # so passages are to be added
            opened.need_bm25s("an update of an index with BM25")
        return opened

    def write(self, made: CorpusIndex, corpus: Corpus, model: str) -> None:
        """Write an encoded corpus; `model` is the digest of the retriever."""
        from rocketqa_paddle.search.milvus_building import build

        build(self._uri, self._collection, model, corpus, made.vectors, bm25=self._bm25)
