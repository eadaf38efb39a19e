"""Models of other libraries, made by hand: random weights, their files, and the oracle's numbers for them.

`Model` is such a model. `write` saves it as transformers (`HF`) or PaddleNLP (`NLP`) do, and `written` reads
what they would read. `KINDS` makes checkpoints of this project, to be written in a foreign format.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import reference
import toy
from reference import Sequence2, Sizes
from safetensors.numpy import load_file, save_file

import rocketqa_paddle
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.parameters import load_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer

QUERIES = ["what is the moon ?", "Paris: capital of France", "  tides  follow its pull ", "café 检索 naïve"]
TITLES = ["", "Paris", "the moon", "bread"]
TEXTS = ["satellite of the earth .", "the louvre museum " * 30, "Tides, its pull", "dough rises with yeast"]
PASSAGES = list(zip(TITLES, TEXTS, strict=True))
PAIRS = list(zip(QUERIES, TITLES, TEXTS, strict=True))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def write_words(path: Path, words: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their relative paths."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# The oracle's models ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Random weights, a vocabulary, and what the oracle computes from text with them."""

    sizes: Sizes
    variables: dict[str, np.ndarray]
    words: Sequence[str]
    lower_case: bool = True
    length: int = 64

    def ids(self, text: str) -> list[int]:
        return [self.words.index(p) for p in reference.word_pieces(text, self.words, self.lower_case)]

    def one(self, *texts: str) -> Sequence2:
        """`[CLS] texts [SEP]`, types 0."""
        ids = [i for text in texts for i in self.ids(text)][: self.length - 2]
        return [2, *ids, 3], [0] * (len(ids) + 2)

    def pair(self, first: str, *second: str) -> Sequence2:
        """`[CLS] first [SEP] second [SEP]`, types 0 then 1."""
        right = [i for text in second for i in self.ids(text)]
        left, right = reference.truncate(self.ids(first), right, self.length - 3)
        return [2, *left, 3, *right, 3], [0] * (len(left) + 2) + [1] * (len(right) + 1)

    def vectors(self, rows: Iterable[Sequence2], pooling: str = "cls", normalize: bool = False) -> np.ndarray:
        states = [reference.ernie(self.variables, self.sizes, row) for row in rows]
        pooled = np.stack([s[0] if pooling == "cls" else s.mean(axis=0) for s in states])
        return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True) if normalize else pooled

    def queries(self) -> np.ndarray:
        return self.vectors(map(self.one, QUERIES))

    def passages(self) -> np.ndarray:
        return self.vectors(self.pair(*passage) for passage in PASSAGES)

    def logits(self, rows: Iterable[Sequence2], pooler: bool = True) -> np.ndarray:
        """The logits `[rows, labels]` of a classifier, from the pooled or the raw state of `[CLS]`."""
        states = self.vectors(rows)
        if pooler:
            return reference.classes_logits(self.variables, states)
        return states @ self.variables["_cls_out_w"] + self.variables["_cls_out_b"]

    def scores(self, pooler: bool = True) -> np.ndarray:
        """The scores of `PAIRS`: the logit, or the log-odds of two classes."""
        return odds(self.logits((self.pair(*pair) for pair in PAIRS), pooler))


def odds(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]


def widened(vocab: Path) -> list[str]:
    """The toy vocabulary with capital letters and a few accents, so that cased text is not all unknown."""
    letters = [*string.ascii_uppercase, *"éïÜ"]
    return [*vocab.read_text(encoding="utf-8").split(), *letters, *(f"##{c}" for c in letters)]


def random_model(
    words: Sequence[str], labels: int = 0, seed: int = 4, lower_case: bool = True, **sizes: Any
) -> Model:
    """A model whose embeddings are so small that the epsilon of the first norm shows."""
    rng = np.random.default_rng(seed)
    chosen = replace(Sizes(len(words), 32, 2, 4, 48, 64, 2, epsilon=1e-12), **sizes)
    variables = reference.random_variables(chosen, rng)
    variables = {n: a * np.float32(0.01) if "embedding" in n else a for n, a in variables.items()}
    if labels:
        h = chosen.hidden
        shapes = {"pooled_fc.w_0": (h, h), "pooled_fc.b_0": h, "_cls_out_w": (h, labels)}
        for name, shape in {**shapes, "_cls_out_b": labels}.items():
            variables[name] = (0.5 * rng.standard_normal(shape)).astype(np.float32)
    return Model(chosen, variables, words, lower_case)


# The libraries' files -----------------------------------------------------------------------------

_LAYER = {  # the oracle's name -> that of transformers, and that of PaddleNLP
    "multi_head_att_query_fc": ("attention.self.query", "self_attn.q_proj"),
    "multi_head_att_key_fc": ("attention.self.key", "self_attn.k_proj"),
    "multi_head_att_value_fc": ("attention.self.value", "self_attn.v_proj"),
    "multi_head_att_output_fc": ("attention.output.dense", "self_attn.out_proj"),
    "post_att_layer_norm": ("attention.output.LayerNorm", "norm1"),
    "ffn_fc_0": ("intermediate.dense", "linear1"),
    "ffn_fc_1": ("output.dense", "linear2"),
    "post_ffn_layer_norm": ("output.LayerNorm", "norm2"),
}
_EMBEDDINGS = {
    "word_embedding": "word_embeddings",
    "pos_embedding": "position_embeddings",
    "sent_embedding": "token_type_embeddings",
    "task_embedding": "task_type_embeddings",
}
_HEAD = {
    "pooled_fc.w_0": "pooler.dense.weight",
    "pooled_fc.b_0": "pooler.dense.bias",
    "_cls_out_w": "classifier.weight",
    "_cls_out_b": "classifier.bias",
}
_KINDS = {".w_0": "weight", ".b_0": "bias", "_scale": "weight", "_bias": "bias"}


@dataclass(frozen=True)
class Library:
    """How a library names and stores parameters."""

    name: str
    layers: str
    norm: str
    column: int
    weights: str

    def name_of(self, variable: str) -> str:
        if variable in _HEAD:
            return _HEAD[variable]
        if variable in _EMBEDDINGS:
            return f"embeddings.{_EMBEDDINGS[variable]}.weight"
        ending = next(ending for ending in _KINDS if variable.endswith(ending))
        module, kind = variable.removesuffix(ending), _KINDS[ending]
        if module == "pre_encoder_layer_norm":
            return f"embeddings.{self.norm}.{kind}"
        number, _, rest = module.removeprefix("encoder_layer_").partition("_")
        return f"{self.layers}.{number}.{_LAYER[rest][self.column]}.{kind}"

    def names(self, variables: Iterable[str], prefix: str) -> dict[str, str]:
        """The oracle's variable -> the library's parameter; a classifier has no prefix."""
        return {v: self.name_of(v) if v.startswith("_cls") else prefix + self.name_of(v) for v in variables}

    def turned(self, variable: str, array: np.ndarray) -> np.ndarray:
        """A matrix as the other side holds it: the linear weights of PyTorch are `[out, in]`."""
        turn = self.name == "huggingface" and (variable.endswith(".w_0") or variable == "_cls_out_w")
        return np.ascontiguousarray(array.T) if turn else array

    def arrays(self, model: Model, prefix: str = "") -> dict[str, np.ndarray]:
        names = self.names(model.variables, prefix)
        return {names[name]: self.turned(name, array) for name, array in model.variables.items()}

    def save(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        if self.name == "huggingface":
            save_file(dict(arrays), folder / self.weights)
        else:
            paddle.save(dict(arrays), str(folder / self.weights))

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        if self.name == "huggingface":
            return load_file(folder / self.weights)
        return {name: np.asarray(t) for name, t in paddle.load(str(folder / self.weights)).items()}


HF = Library("huggingface", "encoder.layer", "LayerNorm", 0, "model.safetensors")
NLP = Library("paddlenlp", "encoder.layers", "layer_norm", 1, "model_state.pdparams")


def config_of(model: Model, library: Library) -> dict[str, Any]:
    sizes = model.sizes
    values = {
        "model_type": "ernie" if sizes.task_types or library is NLP else "bert",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.ffn,
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.sentence_types,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
        "use_task_id": bool(sizes.task_types),
        "task_type_vocab_size": sizes.task_types or 3,  # both libraries write it even if it is not used
    }
    if library is HF:
        return values | {"position_embedding_type": "absolute"}
    return values | {"task_id": 0, "pool_act": "tanh", "paddlenlp_version": None}


def write(folder: Path, model: Model, library: Library, prefix: str = "", **config: Any) -> Path:
    """Write a folder as the library does; settings that are None are left out of its `config.json`."""
    values = config_of(model, library) | config
    keep = {"paddlenlp_version"} - config.keys()
    write_json(folder / "config.json", {k: v for k, v in values.items() if v is not None or k in keep})
    library.save(folder, library.arrays(model, prefix))
    write_words(folder / "vocab.txt", model.words)
    return folder


def written(folder: Path, library: Library) -> Model:
    """A folder as the library reads it: its own settings and arrays, by the oracle's names."""
    config = read_json(folder / "config.json")
    kind, [architecture] = config["model_type"], config["architectures"]
    sizes = Sizes(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        sentence_types=config["type_vocab_size"],
        task_types=config["task_type_vocab_size"] if config.get("use_task_id") else 0,
        activation=config["hidden_act"],
        epsilon=1e-12 if library is NLP and kind == "ernie" else config["layer_norm_eps"],
    )
    classifier = architecture == f"{kind.capitalize()}ForSequenceClassification"
    assert classifier or architecture == f"{kind.capitalize()}Model"
    variables = [*reference.shapes(sizes), *list(_HEAD)[: 4 if classifier else 2]]
    names, held = library.names(variables, f"{kind}." if classifier else ""), library.load(folder)
    assert held.keys() == set(names.values())
    assert {array.dtype for array in held.values()} == {np.dtype(np.float32)}
    found = {variable: library.turned(variable, held[name]) for variable, name in names.items()}
    if classifier:
        assert found["_cls_out_w"].shape == (sizes.hidden, len(config["id2label"]))
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    settings = read_json(folder / "tokenizer_config.json")
    return Model(sizes, found, words, settings["do_lower_case"], settings["model_max_length"])


def check_retriever(folder: Path | str, query: Model, passage: Model | None = None) -> Checkpoint:
    """Check that the folder's retriever gives the oracle's vectors."""
    loaded = rocketqa_paddle.load_model(folder, batch_size=4)
    close(loaded.encode_query(QUERIES), query.queries())
    close(loaded.encode_para(TEXTS, TITLES), (passage or query).passages())
    return loaded.checkpoint


# Checkpoints of this project ----------------------------------------------------------------------

LENGTHS = {"query": 24, "passage": 33, "pair": 33}
MEAN = {"pooling": "mean", "normalize": True}
TASKS = {"task_types": 3, "sentence_types": 4}


def dual(
    folder: Path,
    words: Sequence[str],
    network: Mapping[str, Any],
    sizes: Mapping[str, Any] | None = None,
    **tokenizer: bool,
) -> Checkpoint:
    """A dual encoder with the oracle's weights, whose vocabulary is written to `folder`."""
    models = [random_model(words, seed=seed, **(sizes or {})) for seed in (1, 2)]
    encoder = DualEncoder(toy.ernie_config(models[0].sizes, initializer_range=0.03), **network)
    for tower, model in zip((encoder.query, encoder.passage), models, strict=True):
        load_arrays(tower, reference.for_package(model.variables, model.sizes), "oracle")
    encoder.eval()
    tokens = Tokenizer(write_words(folder / "vocab.txt", words), **tokenizer)
    return Checkpoint(encoder, tokens, {name: LENGTHS[name] for name in ("query", "passage")})


def cross(
    folder: Path, words: Sequence[str], head: str, sizes: Mapping[str, Any] | None = None, **tokenizer: bool
) -> Checkpoint:
    """A cross encoder with the oracle's weights, whose vocabulary is written to `folder`."""
    model = random_model(words, labels=2 if head == "classes" else 1, **(sizes or {}))
    encoder = CrossEncoder(toy.ernie_config(model.sizes, initializer_range=0.03), head=head, dropout=0.0)
    fill_cross(encoder, model.variables, model.sizes)
    encoder.eval()
    tokens = Tokenizer(write_words(folder / "vocab.txt", words), **tokenizer)
    return Checkpoint(encoder, tokens, {"pair": LENGTHS["pair"]})


def fill_cross(encoder: CrossEncoder, variables: reference.Variables, sizes: Sizes, joint: str = "") -> None:
    """Fill a cross encoder with the oracle's variables; those of its output begin with `joint`."""
    load_arrays(encoder.ernie, reference.for_package(variables, sizes), "oracle")
    output = {"weight": variables[f"{joint}_cls_out_w"], "bias": variables[f"{joint}_cls_out_b"]}
    load_arrays(encoder.output, output, "oracle")
    if encoder.pooler is not None:
        pooler = {"weight": variables["pooled_fc.w_0"], "bias": variables["pooled_fc.b_0"]}
        load_arrays(encoder.pooler, pooler, "oracle")


Make = Callable[[Path, Sequence[str]], Checkpoint]
KINDS: dict[str, Make] = {
    "cls": partial(dual, network={"shared": True}),
    "mean": partial(
        dual,
        network={"shared": True, "pooling": "mean", "temperature": 4.0},
        sizes={"epsilon": 1e-5, "activation": "relu", "heads": 2},
        lower_case=False,
    ),
    "one-segment": partial(dual, network={"shared": True, **MEAN, "temperature": 0.05}, one_segment=True),
    "for-cn": partial(dual, network={"shared": True, **MEAN}, sizes={"epsilon": 1e-5}, for_cn=True),
    "tasks": partial(dual, network={"shared": True, "normalize": True, "temperature": 2.0}, sizes=TASKS),
    "two-towers": partial(dual, network={"shared": False}),
    "two-towers-tasks": partial(
        dual, network={**MEAN, "temperature": 0.5}, sizes=TASKS, for_cn=True, lower_case=False
    ),
    "logit": partial(cross, head="logit", sizes={"epsilon": 1e-5}),
    "logit-tasks": partial(cross, head="logit", sizes=TASKS, lower_case=False),
    "classes": partial(cross, head="classes", sizes=TASKS, for_cn=True),
    "pooled-logit": partial(cross, head="pooled_logit", sizes={"activation": "relu"}, lower_case=False),
}
"""What makes a checkpoint of each kind from a folder for its vocabulary and the words."""


def scores(checkpoint: Checkpoint) -> np.ndarray:
    """What the package computes for `PAIRS` with a cross encoder."""
    return forward.score_pairs(checkpoint, QUERIES, TITLES, TEXTS)


def vectors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """What the package computes with a dual encoder; passages are not divided by the temperature."""
    passages = forward.encode_passages(checkpoint, TITLES, TEXTS) * checkpoint.network.temperature
    return {"query": forward.encode_queries(checkpoint, QUERIES), "passage": passages}


def outputs(checkpoint: Checkpoint) -> np.ndarray:
    """Scores, or the vectors of queries and passages."""
    if checkpoint.kind == "cross_encoder":
        return scores(checkpoint)
    return np.stack(list(vectors(checkpoint).values()))


def towers(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """Where each side of a dual encoder was written."""
    return {side: folder if checkpoint.network.shared else folder / side for side in ("query", "passage")}
