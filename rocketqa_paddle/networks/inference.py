"""Networks in bf16 on a CPU, compiled by Paddle Inference with oneDNN.

In float32 the loops of `fused` are at least as fast and need no compilation, so this is for bf16 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import paddle
from paddle import Tensor, inference, nn
from paddle.static import InputSpec

from rocketqa_paddle.networks.batching import Batch
from rocketqa_paddle.runtime import device

_SHAPES = 16  # of batches whose compiled kernels oneDNN keeps
_NAMES = ("token_ids", "type_ids", "mask")


class Graph(nn.Layer):
    """A network as a function of three tensors, for export: `compute` takes a `Batch`."""

    def __init__(self, network: nn.Layer, compute: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.network, self._compute = network, compute

    def forward(self, token_ids: Tensor, type_ids: Tensor, mask: Tensor) -> Tensor:
        """Return what the network computes of three int64 `[B, L]`, as float32; the mask is 1 for a token."""
        return self._compute(Batch(token_ids, type_ids, mask)).astype("float32")


def save_graph(
    network: nn.Layer, compute: Callable[[Batch], Tensor], path: Path, names: Sequence[str] = _NAMES
) -> None:
    """Write what a network computes as a graph of Paddle's operations, `path.json` and `path.pdiparams`.

    The inputs, int64 `[rows, length]`, get the names that are given, in the order of `Batch`.
    """
    inputs = [InputSpec([None, None], "int64", name) for name in names]
    graph = Graph(network, compute)
    graph.eval()
    paddle.jit.save(paddle.jit.to_static(graph, input_spec=inputs, full_graph=True), str(path))


@contextmanager
def in_bf16(network: nn.Layer, compute: Callable[[Batch], Tensor]) -> Iterator[Callable[[Batch], np.ndarray]]:
    """Compile what a network computes; it takes some seconds, and the memory is free again at the end.

    Yields:
        A function of batches, which gives float32 arrays.

    Raises:
        ValueError: the network has no parameters, because it is a graph of another engine.
    """
    if not network.parameters():
        raise ValueError("an exported model computes as it was exported: leave out precision=bf16")
    with TemporaryDirectory(prefix="rocketqa-") as folder:
        path = Path(folder) / "graph"
        save_graph(network, compute, path)
        config = inference.Config(f"{path}.json", f"{path}.pdiparams")
        config.disable_gpu()
        config.disable_glog_info()
        config.enable_mkldnn()
        config.enable_mkldnn_bfloat16()
        config.set_mkldnn_cache_capacity(_SHAPES)
        config.set_cpu_math_library_num_threads(device.threads())
        predictor = inference.create_predictor(config)

    def run(batch: Batch) -> np.ndarray:
        for name, values in zip(_NAMES, batch.arrays(), strict=True):
            predictor.get_input_handle(name).copy_from_cpu(values)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

    yield run
