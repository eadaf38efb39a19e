"""ONNX: models for ONNX Runtime, alone or as the backend `onnx` of sentence-transformers.

A folder is one of `huggingface` with `onnx/model.onnx` in place of `model.safetensors`. The graph takes
`input_ids`, `token_type_ids` and `attention_mask`, int64 `[rows, length]`. It gives the `last_hidden_state`,
float32 `[rows, length, hidden]`, or for a cross encoder the `logits`, float32 `[rows, labels]`. A dual
encoder of two towers is a folder with `query/` and `passage/`.

Such a model computes, and nothing else: it cannot be trained or converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from rocketqa_paddle.checkpoints.formats import huggingface
from rocketqa_paddle.checkpoints.formats.config import encoder_config, native_section
from rocketqa_paddle.checkpoints.formats.towers import SIDES, split_towers
from rocketqa_paddle.networks.batching import Batch
from rocketqa_paddle.networks.encoders import CROSS, Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.runtime import device
from rocketqa_paddle.runtime.storage import read_json

GRAPH = "onnx/model.onnx"
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
WRITTEN = (*(name for name in huggingface.WRITTEN if name != huggingface.WEIGHTS), GRAPH)
"""The names that `write` gives."""
_OPSET = 17
_INSTALL = "pip install 'rocketqa_paddle[onnx]'"


# Writing ----------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path, *, int8: bool = False) -> None:
    """Write a model into an empty folder; with `int8`, its weights are rounded to 8 bits.

    Raises:
        ImportError: the extra `onnx` is not installed.
        ValueError: the model is exported already, or its vocabulary is a SentencePiece model.
    """
    refuse(checkpoint, "exported again")
    if checkpoint.kind == CROSS or checkpoint.network.shared:
        _write_one(checkpoint, folder, int8)
    else:
        for side, tower in split_towers(checkpoint).items():
            (folder / side).mkdir()
            _write_one(tower, folder / side, int8)


def _write_one(checkpoint: Checkpoint, folder: Path, int8: bool) -> None:
    huggingface.write_settings(checkpoint, folder)
    (folder / GRAPH).parent.mkdir()
    network = checkpoint.network
    if checkpoint.kind == CROSS:
        _write_graph(network, network.logits, "logits", folder / GRAPH, int8)
    else:
        _write_graph(network, _states(network), "last_hidden_state", folder / GRAPH, int8)


def _states(network: DualEncoder) -> Callable[[Batch], Tensor]:
    def states(batch: Batch) -> Tensor:
        return network.query(*batch)

    return states


def _write_graph(
    network: nn.Layer, compute: Callable[[Batch], Tensor], output: str, path: Path, int8: bool
) -> None:
    from rocketqa_paddle.networks.inference import save_graph

    with _needed():
        import onnx
        import paddle2onnx
    with TemporaryDirectory(prefix="rocketqa-") as work, _quiet():
        given, made = Path(work) / "graph", Path(work) / "graph.onnx"
        save_graph(network, compute, given, INPUTS)
        paddle2onnx.export(f"{given}.json", f"{given}.pdiparams", str(made), opset_version=_OPSET)
        model = onnx.load(made)
        _rename_output(model.graph, output)
        onnx.save(model, made)
        _quantize(made, path) if int8 else path.write_bytes(made.read_bytes())


def _rename_output(graph: Any, name: str) -> None:
    (output,) = graph.output
    for node in graph.node:
        node.output[:] = [name if made == output.name else made for made in node.output]
        node.input[:] = [name if taken == output.name else taken for taken in node.input]
    output.name = name


def _quantize(source: Path, target: Path) -> None:
    """Round the weights of matrix products to 8 bits, a scale for each column; activations as they come."""
    with _needed():
        from onnxruntime.quantization import QuantType, quantize_dynamic
    options = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]}
    quantize_dynamic(source, target, **options)


# Reading ----------------------------------------------------------------------------------------


def is_exported(folder: Path) -> bool:
    """Whether a folder has a graph, and no weights."""
    return (folder / GRAPH).is_file() and not (folder / huggingface.WEIGHTS).exists()


def read(folder: Path) -> Checkpoint:
    """Read a model that `write` wrote, to be computed by ONNX Runtime on a CPU.

    Raises:
        ImportError: the extra `onnx` is not installed.
        ValueError: the folder's files do not belong together, or come from elsewhere.
    """
    if not (folder / huggingface.CONFIG).is_file():
        query, passage = (_read_parts(folder / side) for side in SIDES)
        if query[:2] != passage[:2]:
            raise ValueError(f"{folder}: query and passage encoder have other settings")
        sizes, section, tokenizer, lengths, _ = passage
        lengths = {"query": query[3]["query"], "passage": lengths["passage"]}
        network = ExportedDual(sizes, section, query[-1], passage[-1])
    else:
        sizes, section, tokenizer, lengths, graph = _read_parts(folder)
        if section["model_type"] == CROSS:
            network = ExportedCross(sizes, section, graph)
        else:
            network = ExportedDual(sizes, section, graph, graph)
    network.eval()
    return Checkpoint(network, tokenizer, lengths)


def _read_parts(folder: Path) -> tuple[ErnieConfig, dict[str, Any], Tokenizer, dict[str, int], Session]:
    config = folder / huggingface.CONFIG
    values = read_json(config)
    section, sizes = native_section(values, config), encoder_config(values, config)
    if not section:
        raise ValueError(f"{folder}: exported by another program; `rocketqa export` writes what is read here")
    lengths, settings = section.pop("lengths"), section.pop("tokenizer")
    return sizes, section, Tokenizer(folder / "vocab.txt", **settings), lengths, Session(folder / GRAPH)


class Session:
    """A graph in ONNX Runtime, with as many threads as Paddle has."""

    def __init__(self, path: Path) -> None:
        with _needed():
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = device.threads()
        options.log_severity_level = 3
        try:
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has many kinds of its own
            raise ValueError(f"{path}: damaged, or no graph that ONNX Runtime reads ({error})") from None
        if names := {*INPUTS} ^ {given.name for given in self._session.get_inputs()}:
            expected = f"expected the inputs {', '.join(INPUTS)}"
            raise ValueError(f"{path}: {expected}; {min(names)} is too many or missing")
        self.digest = hashlib.sha256(path.read_bytes()).digest()

    def __call__(self, batch: Batch) -> Tensor:
        """Compute a batch."""
        given = dict(zip(INPUTS, batch.arrays(), strict=True))
        return paddle.to_tensor(self._session.run(None, given)[0])


class ExportedDual(DualEncoder):
    """A dual encoder whose towers are graphs."""

    shared = False

    def __init__(self, sizes: ErnieConfig, section: dict[str, Any], query: Session, passage: Session) -> None:
        nn.Layer.__init__(self)
        self.config, self.shared = sizes, query is passage
        self.pooling, self.normalize = section["pooling"], section["normalize"]
        self.temperature = section["temperature"]
        self.query, self.passage = query, passage
        _note_digests(self, {query.digest, passage.digest})

    def _states(self, tower: Session, batch: Batch) -> Tensor:
        return tower(batch)


class ExportedCross(CrossEncoder):
    """A cross encoder that is a graph."""

    def __init__(self, sizes: ErnieConfig, section: dict[str, Any], graph: Session) -> None:
        nn.Layer.__init__(self)
        self.config, self.head, self._graph = sizes, section["head"], graph
        _note_digests(self, {graph.digest})

    def logits(self, batch: Batch) -> Tensor:
        """Return `[rows, labels]`; see `CrossEncoder.logits`."""
        return self._graph(batch)


def _note_digests(network: nn.Layer, digests: set[bytes]) -> None:
    """Keep the digests of the graphs where those of other models come from, which is their arrays."""
    content = np.frombuffer(b"".join(sorted(digests)), dtype=np.uint8)
    network.register_buffer("graph", paddle.to_tensor(content.astype(np.int64)))


def refuse(checkpoint: Checkpoint, what: str) -> None:
    """Refuse to do something with an exported model that takes its weights."""
    if isinstance(checkpoint.network, ExportedDual | ExportedCross):
        raise ValueError(f"an exported model cannot be {what}: give the model that it was exported from")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporting libraries tell of their steps, in Python and in C++."""
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}: {_INSTALL}", name=error.name) from error
