"""The command `rocketqa encode`: texts to vectors in a NumPy file."""

from pathlib import Path
from typing import Literal

import numpy as np

from rocketqa_paddle.data.tables import refuse_stream
from rocketqa_paddle.data.texts import load_queries
from rocketqa_paddle.runtime.device import select
from rocketqa_paddle.runtime.storage import array_writer, atomic, write_text
from rocketqa_paddle.settings import at_least

_PART = 16384  # passages that are in memory at once


def output_files(output: str) -> list[str]:
    """The files that `encode --output OUTPUT` writes: the vectors and their ids."""
    stem = output.removesuffix(".npy")
    return [f"{stem}.npy", f"{stem}.ids.txt"] if Path(stem).name and not stem.endswith("/") else [output]


def encode(
    checkpoint: str,
    input: str,
    output: str,
    kind: Literal["passages", "queries"] = "passages",
    titles: str | None = None,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
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
        precision: arithmetic; bf16 is faster where the processor or GPU has it, and less exact
        use_cuda: compute on a GPU
    """
    from rocketqa_paddle.checkpoints import convert
    from rocketqa_paddle.data.corpus import temporary
    from rocketqa_paddle.networks import forward
    from rocketqa_paddle.networks.encoders import DUAL
    from rocketqa_paddle.networks.truncation import truncations

    at_least(1, batch_size=batch_size)
    refuse_stream(output, "two files, OUTPUT.npy and OUTPUT.ids.txt,")
    arithmetic = select(use_cuda, precision)
    vectors_file, ids_file = map(Path, output_files(output))
    if kind == "queries" and titles:
        raise ValueError("--titles is for passages, but --kind is queries")
    model = convert.read(checkpoint, kind=DUAL)
    if kind == "queries":
        records = load_queries(input)
        texts = [query.text for query in records.values()]
        for sentence in truncations(model, texts, []):
            print(sentence)
        with arithmetic:
            vectors = forward.encode_queries(model, texts, batch_size=batch_size)
        parts = [vectors]
    else:
        records = temporary(input, titles).by_id
        for sentence in truncations(model, [], records.rows):
            print(sentence)
        options = {"batch_size": batch_size, "progress": "encode"}
        rows = records.rows
        read = (rows[start : start + _PART] for start in range(0, len(rows), _PART))
        parts = forward.encode_parts(model, read, len(rows), **options)
    ids_file.unlink(missing_ok=True)  # so that a crash leaves no old ids beside new vectors
    shape = (len(records), model.network.config.hidden_size)
    with arithmetic, atomic(vectors_file) as new, array_writer(new, shape, np.dtype("float32")) as write:
        for part in parts:
            write(part)
    write_text(ids_file, "".join(f"{id}\n" for id in records))
    print(f"{shape[0]} vectors of {shape[1]} dimensions in {vectors_file}")
