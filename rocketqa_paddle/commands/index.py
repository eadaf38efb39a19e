"""The command `rocketqa index`: a corpus to a searchable index."""

from typing import Literal

from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.data.texts import load_passages
from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.runtime.storage import locked
from rocketqa_paddle.settings import at_least


def index(
    checkpoint: str,
    passages: str,
    output: str,
    titles: str | None = None,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    use_cuda: bool = False,
) -> None:
    """Encode a corpus and save it as a searchable index.

    Args:
        checkpoint: a retriever: folder, toolkit's JSON or published name
        passages: file of `id TAB text` lines (para.txt), or BEIR's corpus.jsonl
        output: index folder to write
        titles: file of `id TAB title` lines (para.title.txt)
        batch_size: rows computed together
        precision: arithmetic; bf16 is faster where the processor or GPU has it, and less exact
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.networks.encoders import DUAL
    from rocketqa_paddle.networks.truncation import truncations
    from rocketqa_paddle.search.index import CONTENTS
    from rocketqa_paddle.search.retrieval import CorpusIndex

    at_least(1, batch_size=batch_size)
    refuse_stream(output, "a folder")
    with locked(output):
        CONTENTS.check(output)
        corpus = load_passages(passages, titles)
        arithmetic = select(use_cuda, precision)
        model = convert.read(checkpoint, kind=DUAL)
        for sentence in truncations(model, [], list(corpus.values())):
            print(sentence)
        with arithmetic:
            index = CorpusIndex(model, corpus, batch_size=batch_size, progress="encode")
        index.save(output, model.digest())
    print(f"{len(corpus)} passages indexed in {output}")
