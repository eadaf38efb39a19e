"""The command `rocketqa index`: a corpus to a searchable index."""

import os
import warnings
from pathlib import Path
from typing import Literal

from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.data.texts import count_empty, placed_passages
from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.runtime.storage import hidden, locked
from rocketqa_paddle.settings import IndexSettings, at_least, need_bm25s


def index(
    checkpoint: str,
    passages: str,
    output: str,
    titles: str | None = None,
    factory: str = "Flat",
    parameters: str = "",
    candidates: int | None = None,
    vectors: Literal["float32", "float16"] = "float32",
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    bm25: bool = False,
    use_cuda: bool = False,
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
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.data.corpus import CONTENTS as CORPUS
    from rocketqa_paddle.data.corpus import StoredCorpus
    from rocketqa_paddle.data.dataset import Corpus
    from rocketqa_paddle.networks.encoders import DUAL
    from rocketqa_paddle.networks.truncation import truncations
    from rocketqa_paddle.runtime.folders import remove
    from rocketqa_paddle.search.index import CONTENTS, check_factory
    from rocketqa_paddle.search.retrieval import CorpusIndex

    at_least(1, batch_size=batch_size)
    if bm25:
        need_bm25s("bm25=true")
    settings = IndexSettings(factory, parameters, candidates)
    refuse_stream(output, "a folder")
    with locked(output):
        CONTENTS.check(output)
        select(use_cuda, precision)
        model = convert.read(checkpoint, kind=DUAL)
        check_factory(settings, model.network.config.hidden_size)
        work = hidden(Path(os.path.realpath(output)), "work")
        files = [Path(file) for file in (passages, titles) if file]
        stored = StoredCorpus(
            work / "corpus", files, lambda before: placed_passages(passages, titles, loaded=before)
        )
        if told := count_empty(passages, len(stored.by_id), stored.empty):
            warnings.warn(told, stacklevel=2)
        corpus = Corpus(stored.by_id, stored.fingerprint)
        for sentence in truncations(model, [], corpus.rows):
            print(sentence)
        made = CorpusIndex(
            model,
            corpus,
            folder=work / "vectors",
            dtype=vectors,
            precision=precision,
            batch_size=batch_size,
            progress="encode",
        )
        made.save(output, model.digest(), settings, bm25=bm25)
        made.close()
        remove(work / "corpus", CORPUS)
        work.rmdir()
    print(f"{len(corpus)} passages indexed in {output}")
