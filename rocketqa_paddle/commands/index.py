"""The command `rocketqa index`: a corpus to a searchable index, and changes of its passages."""

import os
import warnings
from pathlib import Path
from typing import Literal

from rocketqa_paddle.commands.index_place import Folder, Milvus, leave_out, place_of
from rocketqa_paddle.data.tables import columns, lines
from rocketqa_paddle.data.texts import count_empty, placed_passages
from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.runtime.storage import hidden, locked
from rocketqa_paddle.settings import COLLECTION, IndexSettings, at_least, need_bm25s


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
    bm25: bool = False,
    use_cuda: bool = False,
    engine: Literal["faiss", "milvus"] = "faiss",
    uri: str | None = None,
    collection: str = COLLECTION,
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
        bm25: index the words as well, for searches that fuse the two (needs the package bm25s)
        use_cuda: compute on a GPU
        engine: what keeps the index: faiss a folder (--output), milvus a file or a server (--uri)
        uri: where Milvus is: a file NAME.db, or http://HOST:19530
        collection: name of the index in Milvus
        update: add the passages to the index that is there, and replace those of the same id
        delete: file with an id a line, of passages to take out of the index that is there
    """
    at_least(1, batch_size=batch_size)
    if bm25:
        need_bm25s("bm25=true")
    settings = IndexSettings(factory, parameters, candidates)
    place = place_of(output, uri, collection, settings, engine, vectors, bm25)
    if delete:
        leave_out("--delete", checkpoint=checkpoint, passages=passages, titles=titles, update=update)
        ids = [id for _, (id,) in columns(lines(delete), ("id",))]
        with locked(place.path):
            gone = place.open().delete(ids)
        print(f"{gone} passages deleted in {place}, of {len(ids)} ids")
        return
    if not (checkpoint and passages):
        raise ValueError("index needs --checkpoint, a retriever, and --passages, a file")
    if update:  # which keeps the kind of the index
        leave_out("--update", factory=not settings.is_exact, vectors=vectors != "float32", bm25=bm25)
    with locked(place.path):
        options = {"batch_size": batch_size, "precision": precision}
        select(use_cuda, precision)
        print(_written(place, checkpoint, [passages, titles], update, vectors, options))


def _written(
    place: Folder | Milvus,
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
    dimension = model.network.config.hidden_size
    place.check_model(dimension)
    work = hidden(Path(os.path.realpath(place.path)), "work")
    stored = StoredCorpus(
        work / "corpus",
        [Path(file) for file in files if file],
        lambda before: placed_passages(*files, loaded=before),
    )
    if told := count_empty(files[0], len(stored.by_id), stored.empty):
        warnings.warn(told, stacklevel=2)
    corpus = Corpus(stored.by_id, stored.fingerprint)
    place.check_texts(corpus, dimension)
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
