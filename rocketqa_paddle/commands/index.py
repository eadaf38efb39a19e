"""The command `rocketqa index`: a corpus to a searchable index, and changes of its passages."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rocketqa_paddle.data.tables import columns, lines, refuse_stream
from rocketqa_paddle.data.texts import count_empty, placed_passages
from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.runtime.storage import hidden, locked
from rocketqa_paddle.settings import IndexSettings, at_least

if TYPE_CHECKING:  # these import Paddle
    from rocketqa_paddle.data.dataset import Corpus
    from rocketqa_paddle.search.folder import IndexFolder
    from rocketqa_paddle.search.milvus import MilvusIndex
    from rocketqa_paddle.search.retrieval import CorpusIndex


def index(
    checkpoint: str | None = None,
    passages: str | None = None,
    output: str | None = None,
    titles: str | None = None,
    factory: str = "Flat",
    parameters: str = "",
    candidates: int | None = None,
    vectors: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    use_cuda: bool = False,
    engine: Literal["faiss", "milvus"] = "faiss",
    uri: str | None = None,
    collection: str = "rocketqa",
    update: bool = False,
    delete: str | None = None,
) -> None:
    """Encode a corpus and save it as a searchable index. Given again after a stop, the command goes on.

    Args:
        checkpoint: a retriever: folder, toolkit's JSON or published name
        passages: file of `id TAB text` lines (para.txt), or BEIR's corpus.jsonl
        output: index folder to write
        titles: file of `id TAB title` lines (para.title.txt)
        factory: Flat compares every vector; any other is faiss's name of an index, such as HNSW32 or
            IVF4096,PQ48, which finds candidates whose scores the vectors give
        parameters: of the search in such an index, such as nprobe=32 or efSearch=64
        candidates: that such an index finds for a query, at least
        vectors: numbers of the vectors on the disk
        batch_size: rows computed together
        precision: arithmetic; bf16 is faster where the processor or GPU has it, and less exact
        use_cuda: compute on a GPU
        engine: what keeps the index: faiss a folder (--output), milvus a file or a server (--uri)
        uri: where Milvus is: a file NAME.db, or http://HOST:19530
        collection: name of the index in Milvus
        update: add the passages to the index that is there, and replace those of the same id
        delete: file with an id a line, of passages to take out of the index that is there
    """
    at_least(1, batch_size=batch_size)
    settings = IndexSettings(factory, parameters, candidates)
    place = _place(output, uri, collection, settings, engine, vectors)
    if delete:
        _leave_out("--delete", checkpoint=checkpoint, passages=passages, titles=titles, update=update)
        ids = [id for _, (id,) in columns(lines(delete), ("id",))]
        with locked(place.path):
            gone = place.open().delete(ids)
        print(f"{gone} passages deleted in {place}, of {len(ids)} ids")
        return
    if not (checkpoint and passages):
        raise ValueError("index needs --checkpoint, a retriever, and --passages, a file")
    if update and settings != IndexSettings():
        raise ValueError("--update keeps the kind of the index: leave out --factory and its parameters")
    with locked(place.path):
        options = {"batch_size": batch_size, "precision": precision}
        select(use_cuda, precision)
        print(_written(place, checkpoint, [passages, titles], update, vectors, options))


def _written(
    place: _Folder | _Milvus,
    checkpoint: str,
    files: list[str | None],
    update: bool,
    dtype: str,
    options: dict,
) -> str:
    """Encode the passages and write them; return what to tell at the end."""
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.data.corpus import CONTENTS as CORPUS
    from rocketqa_paddle.data.corpus import StoredCorpus
    from rocketqa_paddle.data.dataset import Corpus
    from rocketqa_paddle.networks.encoders import DUAL
    from rocketqa_paddle.networks.truncation import truncations
    from rocketqa_paddle.runtime.folders import remove
    from rocketqa_paddle.search.retrieval import CorpusIndex

    if not update:
        place.check()
    model = convert.read(checkpoint, kind=DUAL)
    digest = model.digest()
    opened = place.open(digest) if update else None
    place.check_model(model.network.config.hidden_size)
    work = hidden(Path(os.path.realpath(place.path)), "work")
    stored = StoredCorpus(
        work / "corpus",
        [Path(file) for file in files if file],
        lambda before: placed_passages(*files, loaded=before),
    )
    if told := count_empty(files[0], len(stored.by_id), stored.empty):
        warnings.warn(told, stacklevel=2)
    corpus = Corpus(stored.by_id, stored.fingerprint)
    place.check_texts(corpus)
    for sentence in truncations(model, [], corpus.rows):
        print(sentence)
    dtype = opened.dtype if opened else dtype
    made = CorpusIndex(
        model, corpus, folder=work / "vectors", digest=digest, dtype=dtype, progress="encode", **options
    )
    if opened:
        replaced = opened.update(corpus, made.vectors)
        told = f"{len(corpus) - replaced} passages added and {replaced} replaced in {place}"
    else:
        place.write(made, corpus, digest)
        told = f"{len(corpus)} passages indexed in {place}"
    made.close()
    remove(work / "corpus", CORPUS)
    work.rmdir()
    return told


# Places -------------------------------------------------------------------------------------------


def _place(
    output: str | None, uri: str | None, collection: str, settings: IndexSettings, engine: str, vectors: str
) -> _Folder | _Milvus:
    """Where the index is to be.

    Raises:
        ValueError: flags are missing, or do not fit the engine.
    """
    if engine == "milvus":
        if not uri:
            raise ValueError("--engine milvus needs --uri, a file NAME.db or a server, http://HOST:19530")
        exact = {} if settings.is_exact else {"factory": settings.factory}
        _leave_out("--engine milvus", output=output, vectors=vectors != "float32", **exact)
        return _Milvus(uri, collection)
    _leave_out("--engine faiss", uri=uri)
    if not output:
        raise ValueError("index needs --output, the folder of the index")
    refuse_stream(output, "a folder")
    return _Folder(output, settings)


def _leave_out(flag: str, **others: object) -> None:
    if given := [name for name, value in others.items() if value]:
        raise ValueError(f"{flag} goes without --{given[0]}: leave it out")


class _Folder:
    """An index folder."""

    def __init__(self, folder: str, settings: IndexSettings) -> None:
        self.path, self._settings = Path(folder), settings

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        from rocketqa_paddle.search.index import CONTENTS

        CONTENTS.check(self.path)

    def check_model(self, dimension: int) -> None:
        from rocketqa_paddle.search.index import check_factory

        check_factory(self._settings, dimension)

    def check_texts(self, corpus: Corpus) -> None:
        """Any text will do."""

    def open(self, model: str | None = None) -> IndexFolder:
        from rocketqa_paddle.search.folder import IndexFolder

        return IndexFolder(self.path, model)

    def write(self, made: CorpusIndex, corpus: Corpus, model: str) -> None:
        made.save(self.path, model, self._settings)


class _Milvus:
    """A collection of Milvus. What is kept for a command that goes on lies beside the file, or here."""

    def __init__(self, uri: str, collection: str) -> None:
        self._uri, self._collection = uri, collection
        self.path = Path(collection if "://" in uri else uri)

    def __str__(self) -> str:
        from rocketqa_paddle.search.milvus_connection import shown

        return f"{shown(self._uri)}, {self._collection}"

    def check(self) -> None:
        from rocketqa_paddle.search.milvus import check_replaceable

        check_replaceable(self._uri, self._collection)

    def check_model(self, dimension: int) -> None:
        """Milvus takes vectors of any size that there is."""

    def check_texts(self, corpus: Corpus) -> None:
        from rocketqa_paddle.search.milvus import check_lengths

        check_lengths(corpus.rows)

    def open(self, model: str | None = None) -> MilvusIndex:
        from rocketqa_paddle.search.milvus import MilvusIndex

        return MilvusIndex(self._uri, self._collection, model)

    def write(self, made: CorpusIndex, corpus: Corpus, model: str) -> None:
        from rocketqa_paddle.search.milvus import build

        build(self._uri, self._collection, model, corpus, made.vectors)
