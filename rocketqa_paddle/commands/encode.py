"""The command `rocketqa encode`: texts to vectors in a NumPy file."""

from pathlib import Path
from typing import Literal

from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.data.texts import load_passages, load_queries
from rocketqa_paddle.runtime.device import select_device
from rocketqa_paddle.runtime.storage import atomic, locked, save_array, write_text
from rocketqa_paddle.settings import at_least


def encode(
    checkpoint: str,
    input: str,
    output: str,
    kind: Literal["passages", "queries"] = "passages",
    titles: str | None = None,
    batch_size: int = 64,
    use_cuda: bool = False,
) -> None:
    """Write the vectors of passages or queries as a NumPy file.

    Args:
        checkpoint: a retriever: folder, toolkit's JSON or published name
        input: file of `id TAB text` lines, or BEIR's JSON lines
        output: where to write: OUTPUT.npy, float32 [n, hidden], and OUTPUT.ids.txt
        kind: what the input holds
        titles: file of `id TAB title` lines, for passages
        batch_size: rows computed together
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.networks import forward
    from rocketqa_paddle.networks.encoders import DUAL
    from rocketqa_paddle.networks.truncation import truncations

    at_least(1, batch_size=batch_size)
    refuse_stream(output, "two files, OUTPUT.npy and OUTPUT.ids.txt,")
    select_device(use_cuda)
    stem = output.removesuffix(".npy")
    with locked(f"{stem}.npy"):
        model = convert.read(checkpoint, kind=DUAL)
        if kind == "queries":
            records = load_queries(input)
            texts = [query.text for query in records.values()]
            for sentence in truncations(model, texts, []):
                print(sentence)
            vectors = forward.encode_queries(model, texts, batch_size=batch_size)
        else:
            records = load_passages(input, titles)
            for sentence in truncations(model, [], list(records.values())):
                print(sentence)
            columns = [p.title for p in records.values()], [p.text for p in records.values()]
            vectors = forward.encode_passages(model, *columns, batch_size=batch_size, progress="encode")
        with atomic(f"{stem}.npy") as new:
            save_array(new, vectors)
        write_text(Path(f"{stem}.ids.txt"), "".join(f"{id}\n" for id in records))
    print(f"{len(records)} vectors of {vectors.shape[1]} dimensions in {stem}.npy")
