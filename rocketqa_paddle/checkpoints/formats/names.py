"""How Hugging Face and PaddleNLP name the parameters of an encoder and of a classifier's head."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rocketqa_paddle.networks.parameters import Arrays, check_layers

_OLD_KINDS = {"gamma": "weight", "beta": "bias"}  # as TensorFlow called them


class Names(NamedTuple):
    """The names of a library, and how it stores matrices.

    A native name is one of `ernie.Ernie`, or that of a module of `encoders.CrossEncoder`.
    """

    norm: str  # the layer norm of the embeddings
    prefix: str  # what stands before the modules of a layer; `{i}` is the layer's number
    layer: tuple[str, ...]  # the modules of a layer, in the order of `_LAYER`
    transposed: bool  # whether linear weights are `[out, in]`, where Paddle's are `[in, out]`

    def to_native(self, arrays: Arrays, layers: int, source: Path) -> dict[str, np.ndarray]:
        """Return the library's arrays, which are those of the file `source`, under native names.

        Heads of language models are left out. An array of the encoder with an unknown name keeps it, so that
        it is reported when a network is filled.

        Raises:
            ValueError: there are fewer arrays than layers.
        """
        check_layers(layers, arrays, source)
        native_modules = {foreign: native for native, foreign in self._modules(layers).items()}
        renamed = {}
        for name, array in arrays.items():
            name = name.removeprefix("bert.").removeprefix("ernie.")
            module, _, kind = name.rpartition(".")
            if native := native_modules.get(module):
                renamed[f"{native}.{_OLD_KINDS.get(kind, kind)}"] = self._turned(native, array)
            elif name.startswith(("embeddings.", "encoder.")) and not name.endswith("_ids"):
                renamed[name] = array
        return renamed

    def to_foreign(self, arrays: Arrays, layers: int, base: str) -> dict[str, np.ndarray]:
        """Return native arrays under the library's names; those of the encoder begin with `base`."""
        modules, renamed = self._modules(layers), {}
        for name, array in arrays.items():
            module, _, kind = name.rpartition(".")
            prefix = "" if module == "output" else base
            renamed[f"{prefix}{modules[module]}.{kind}"] = self._turned(module, array)
        return renamed

    def _modules(self, layers: int) -> dict[str, str]:
        """Return the library's names of all modules by their native names."""
        modules = {native: f"embeddings.{foreign}" for native, foreign in _EMBEDDINGS.items()}
        for i in range(layers):
            foreign = (f"{self.prefix.format(i=i)}.{module}" for module in self.layer)
            modules |= zip((f"layers.{i}.{module}" for module in _LAYER), foreign, strict=True)
        return modules | {"norm": f"embeddings.{self.norm}", "pooler": "pooler.dense", "output": "classifier"}

    def _turned(self, module: str, array: np.ndarray) -> np.ndarray:
        turn = self.transposed and array.ndim == 2 and "embedding" not in module
        return np.ascontiguousarray(array.T if turn else array, dtype=np.float32)


_EMBEDDINGS = {
    "word_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "sentence_embedding": "token_type_embeddings",
    "task_embedding": "task_type_embeddings",
}
_LAYER, _HUGGINGFACE, _PADDLENLP = zip(
    ("attention.query", "attention.self.query", "self_attn.q_proj"),
    ("attention.key", "attention.self.key", "self_attn.k_proj"),
    ("attention.value", "attention.self.value", "self_attn.v_proj"),
    ("attention.output", "attention.output.dense", "self_attn.out_proj"),
    ("attention_norm", "attention.output.LayerNorm", "norm1"),
    ("ffn_in", "intermediate.dense", "linear1"),
    ("ffn_out", "output.dense", "linear2"),
    ("ffn_norm", "output.LayerNorm", "norm2"),
    strict=True,
)
HUGGINGFACE = Names("LayerNorm", "encoder.layer.{i}", _HUGGINGFACE, transposed=True)
PADDLENLP = Names("layer_norm", "encoder.layers.{i}", _PADDLENLP, transposed=False)
