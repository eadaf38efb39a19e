"""Hugging Face folders: read with the oracle's numbers, and written so that their makers' tools give ours.

What needs no PyTorch is checked against the oracle alone, from folders that are made by hand here. Where
transformers and sentence-transformers are installed, they load what is written and save what is read.
"""

from __future__ import annotations

import json
import string
import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference
import tokenizers
import toy
from reference import Sequence2, Sizes
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.special import expit

import rocketqa_paddle
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder, describe
from rocketqa_paddle.networks.parameters import load_arrays
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.search import retrieval

QUERIES = ["what is the moon ?", "Paris: capital of France", "  tides  follow its pull ", "café 检索 naïve"]
TITLES = ["", "Paris", "the moon", "bread"]
TEXTS = ["satellite of the earth .", "the louvre museum " * 30, "Tides, its pull", "dough rises with yeast"]

AWKWARD = [
    "Café NAÏVE Ünïcödé e\u0301 o\u0308 Å",
    "北京Paris检索,稠密。㐀豈\U00020000",
    "a.b,c!d?e(f)g-h_i$j%k^l`m~n|o—p…q“r”s",
    "🙂🙂 x🙂y 👩\u200d👩\u200d👧",
    "a\x00b\x07c\u200bd\ufeffe\ufffdf\x7fg\u00adh",
    "tab\tnew\nline\r\nend\u3000wide\u00a0hard\u2028line",
    "  double  spaces ",
    "",
    " ",
    "İstanbul ıI ﬁ ǅ ß ẞ Ω ſ",
    "한국어 가각 ญี่ปุ่น हिन्दी العَرَبِية",
    "x" * 100,
    "x" * 101,
    "##a ##",
    "MiXeD CaSe",
]
"""Texts on which tokenizers differ if they differ at all."""


# Models made by hand ----------------------------------------------------------------------------

LAYER = {
    "multi_head_att_query_fc.w_0": "attention.self.query.weight",
    "multi_head_att_query_fc.b_0": "attention.self.query.bias",
    "multi_head_att_key_fc.w_0": "attention.self.key.weight",
    "multi_head_att_key_fc.b_0": "attention.self.key.bias",
    "multi_head_att_value_fc.w_0": "attention.self.value.weight",
    "multi_head_att_value_fc.b_0": "attention.self.value.bias",
    "multi_head_att_output_fc.w_0": "attention.output.dense.weight",
    "multi_head_att_output_fc.b_0": "attention.output.dense.bias",
    "post_att_layer_norm_scale": "attention.output.LayerNorm.weight",
    "post_att_layer_norm_bias": "attention.output.LayerNorm.bias",
    "ffn_fc_0.w_0": "intermediate.dense.weight",
    "ffn_fc_0.b_0": "intermediate.dense.bias",
    "ffn_fc_1.w_0": "output.dense.weight",
    "ffn_fc_1.b_0": "output.dense.bias",
    "post_ffn_layer_norm_scale": "output.LayerNorm.weight",
    "post_ffn_layer_norm_bias": "output.LayerNorm.bias",
}
EMBEDDINGS = {
    "word_embedding": "embeddings.word_embeddings.weight",
    "pos_embedding": "embeddings.position_embeddings.weight",
    "sent_embedding": "embeddings.token_type_embeddings.weight",
    "task_embedding": "embeddings.task_type_embeddings.weight",
    "pre_encoder_layer_norm_scale": "embeddings.LayerNorm.weight",
    "pre_encoder_layer_norm_bias": "embeddings.LayerNorm.bias",
}
POOLER = {"pooled_fc.w_0": "pooler.dense.weight", "pooled_fc.b_0": "pooler.dense.bias"}
CLASSIFIER = {"_cls_out_w": "classifier.weight", "_cls_out_b": "classifier.bias"}


def names(sizes: Sizes, prefix: str = "", head: bool = False) -> dict[str, str]:
    """The oracle's variable -> its name in transformers; with a classifier, if asked for."""
    found = {ours: f"{prefix}{theirs}" for ours, theirs in EMBEDDINGS.items()}
    if not sizes.task_types:
        del found["task_embedding"]
    for i in range(sizes.layers):
        found |= {f"encoder_layer_{i}_{o}": f"{prefix}encoder.layer.{i}.{t}" for o, t in LAYER.items()}
    found |= {ours: f"{prefix}{theirs}" for ours, theirs in POOLER.items()}
    return found | CLASSIFIER if head else found


def turned(variable: str, array: np.ndarray) -> np.ndarray:
    """A matrix as the other side holds it: torch's linear weights are `[out, in]`."""
    linear = variable.endswith(".w_0") or variable == "_cls_out_w"
    return np.ascontiguousarray(array.T) if linear else array


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

    def logits(self, rows: Iterable[Sequence2], pooler: bool = True) -> np.ndarray:
        """A classifier's, `[rows, labels]`, on the pooled or on the raw state of `[CLS]`."""
        states = self.vectors(rows)
        if pooler:
            return reference.classes_logits(self.variables, states)
        return states @ self.variables["_cls_out_w"] + self.variables["_cls_out_b"]


def widened(vocab: Path) -> list[str]:
    """The toy vocabulary, capital letters and a few accents, so that cased text is not all unknown."""
    letters = [*string.ascii_uppercase, *"éïÜ"]
    return [*vocab.read_text(encoding="utf-8").split(), *letters, *(f"##{c}" for c in letters)]


@pytest.fixture(scope="module")
def words(vocab: Path) -> list[str]:
    return widened(vocab)


def random_model(
    words: Sequence[str], labels: int = 0, seed: int = 4, lower_case: bool = True, **sizes: Any
) -> Model:
    rng = np.random.default_rng(seed)
    chosen = replace(Sizes(len(words), 32, 2, 4, 48, 64, 2, epsilon=1e-12), **sizes)
    variables = reference.random_variables(chosen, rng)
    if labels:
        h = chosen.hidden
        shapes = {"pooled_fc.w_0": (h, h), "pooled_fc.b_0": h, "_cls_out_w": (h, labels)}
        for name, shape in {**shapes, "_cls_out_b": labels}.items():
            variables[name] = (0.5 * rng.standard_normal(shape)).astype(np.float32)
    return Model(chosen, variables, words, lower_case)


def small(model: Model) -> Model:
    """With embeddings so small that the epsilon of the first norm shows."""
    scaled = {n: a * np.float32(0.01) if "embedding" in n else a for n, a in model.variables.items()}
    return replace(model, variables=scaled)


def arrays(model: Model, prefix: str = "") -> dict[str, np.ndarray]:
    """Under the names of transformers."""
    table = names(model.sizes, prefix, head=True)
    return {table[name]: turned(name, array) for name, array in model.variables.items()}


def write(folder: Path, model: Model, prefix: str = "", **config: Any) -> Path:
    """A folder as transformers writes it. A setting that is None is left out of `config.json`."""
    sizes = model.sizes
    values = {
        "model_type": "ernie" if sizes.task_types else "bert",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.ffn,
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.sentence_types,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
        "position_embedding_type": "absolute",
        "use_task_id": bool(sizes.task_types),
        "task_type_vocab_size": sizes.task_types or 3,  # there even where it is not used
        **config,
    }
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {key: value for key, value in values.items() if value is not None})
    save_file(arrays(model, prefix), folder / "model.safetensors")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in model.words), encoding="utf-8")
    return folder


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tokenizer_json(path: Path, words: Sequence[str], kind: str = "WordPiece", **normalizer: object) -> None:
    values = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], "special": True} for i in range(5)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, **normalizer},
        "model": {"type": kind, "unk_token": "[UNK]", "vocab": {word: i for i, word in enumerate(words)}},
    }
    write_json(path, values)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# Reading: encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix, sizes",
    [
        pytest.param("", {}, id="bert"),
        pytest.param("bert.", {}, id="bert-prefix"),
        pytest.param("", {"activation": "relu", "epsilon": 1e-5, "heads": 2}, id="relu"),
        pytest.param("", {"task_types": 3, "sentence_types": 4}, id="ernie"),
        pytest.param("ernie.", {"task_types": 16, "layers": 3}, id="ernie-prefix"),
    ],
)
def test_an_encoder_gives_the_oracles_vectors(
    tmp_path: Path, words: list[str], prefix: str, sizes: dict
) -> None:
    model = small(random_model(words, **sizes))
    ours = rocketqa_paddle.load_model(write(tmp_path / "hf", model, prefix), batch_size=4)
    assert ours.checkpoint.network.config.task_types == model.sizes.task_types
    assert ours.checkpoint.lengths == {"query": 64, "passage": 64}
    close(ours.encode_query(QUERIES), model.vectors(map(model.one, QUERIES)))
    rows = [model.pair(*row) for row in zip(TITLES, TEXTS, strict=True)]
    assert max(len(ids) for ids, _ in rows) == 64
    close(ours.encode_para(TEXTS, TITLES), model.vectors(rows))


def test_an_ernie_that_does_not_use_its_task_ids_has_no_task_embedding(
    tmp_path: Path, words: list[str]
) -> None:
    model = random_model(words)
    folder = write(tmp_path / "hf", model, model_type="ernie", use_task_id=False, task_type_vocab_size=3)
    close(rocketqa_paddle.load_model(folder).encode_query(QUERIES), model.vectors(map(model.one, QUERIES)))


def test_settings_that_a_config_leaves_out_are_those_of_transformers(
    tmp_path: Path, words: list[str]
) -> None:
    """`BertConfig()` and `ErnieConfig()`: gelu, epsilon 1e-12, two sentence types, three tasks."""
    model = small(random_model(words, task_types=3))
    left_out = ("hidden_act", "layer_norm_eps", "type_vocab_size", "task_type_vocab_size")
    folder = write(tmp_path / "hf", model, **dict.fromkeys((*left_out, "position_embedding_type")))
    close(rocketqa_paddle.load_model(folder).encode_query(QUERIES), model.vectors(map(model.one, QUERIES)))


def test_norms_may_have_the_names_that_tensorflow_gave_them(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    folder = write(tmp_path / "hf", model, "bert.")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, array in load_file(folder / "model.safetensors").items():
        end = next((end for end in old if name.endswith(end)), "")
        renamed[name.removesuffix(end) + old.get(end, "")] = array
    assert sum(name.endswith("gamma") for name in renamed) == 5
    save_file(renamed, folder / "model.safetensors")
    close(rocketqa_paddle.load_model(folder).encode_query(QUERIES), model.vectors(map(model.one, QUERIES)))


def test_heads_of_language_models_poolers_and_buffers_are_left_out(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    plain = write(tmp_path / "plain", model, "bert.")
    full = write(tmp_path / "full", model, "bert.")
    h, v = model.sizes.hidden, model.sizes.vocab
    save_file(
        arrays(model, "bert.")
        | {
            "bert.embeddings.position_ids": np.arange(64)[None],
            "bert.embeddings.token_type_ids": np.zeros((1, 64), np.int64),
            "bert.pooler.dense.weight": np.ones((h, h), np.float32),
            "bert.pooler.dense.bias": np.ones(h, np.float32),
            "cls.predictions.bias": np.ones(v, np.float32),
            "cls.predictions.decoder.weight": np.ones((v, h), np.float32),
            "cls.predictions.decoder.bias": np.ones(v, np.float32),
            "cls.predictions.transform.dense.weight": np.ones((h, h), np.float32),
            "cls.predictions.transform.dense.bias": np.ones(h, np.float32),
            "cls.predictions.transform.LayerNorm.weight": np.ones(h, np.float32),
            "cls.predictions.transform.LayerNorm.bias": np.ones(h, np.float32),
            "cls.seq_relationship.weight": np.ones((2, h), np.float32),
            "cls.seq_relationship.bias": np.ones(2, np.float32),
        },
        full / "model.safetensors",
    )
    one, other = convert.read(plain), convert.read(full)
    assert one.digest() == other.digest()
    assert isinstance(other.network, DualEncoder)


def test_half_precision_is_read_as_single(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    folder = write(tmp_path / "hf", model)
    half = {name: array.astype(np.float16) for name, array in model.variables.items()}
    save_file(arrays(replace(model, variables=half)), folder / "model.safetensors")
    rounded = {name: array.astype(np.float32) for name, array in half.items()}
    expected = replace(model, variables=rounded).vectors(map(model.one, QUERIES))
    close(rocketqa_paddle.load_model(folder).encode_query(QUERIES), expected)


def test_bfloat16_which_numpy_does_not_know_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    header = json.dumps({"embeddings.x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(ValueError, match="model.safetensors: not a whole .* file of float32 or float16"):
        convert.read(folder)


def test_an_encoder_without_its_head_starts_training(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words, labels=2, lower_case=False)
    folder = write(tmp_path / "hf", model, "bert.")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})
    weights = convert.read_encoder(folder)
    assert not weights.lower_case
    assert weights.vocabulary == folder.resolve() / "vocab.txt"
    expected = reference.for_package(model.variables, model.sizes)
    assert weights.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(weights.arrays[name], array, err_msg=name)


# Reading: tokenizers ----------------------------------------------------------------------------


def test_a_tokenizer_json_is_as_good_as_a_vocabulary(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    folder = write(tmp_path / "hf", model)
    (folder / "vocab.txt").unlink()
    tokenizer_json(folder / "tokenizer.json", words, lowercase=True, strip_accents=None)
    close(rocketqa_paddle.load_model(folder).encode_query(QUERIES), model.vectors(map(model.one, QUERIES)))


@pytest.mark.parametrize(
    "config, normalizer, lower",
    [
        pytest.param(None, None, True, id="nothing-said"),
        pytest.param({"do_lower_case": True}, None, True, id="config-uncased"),
        pytest.param({"do_lower_case": False, "strip_accents": None}, None, False, id="config-cased"),
        pytest.param({"model_max_length": 512}, {"lowercase": False}, False, id="json-cased"),
        pytest.param(
            None, {"lowercase": True, "strip_accents": True, "handle_chinese_chars": True}, True, id="json"
        ),
        pytest.param({"do_lower_case": False}, {"lowercase": True}, False, id="config-wins"),
    ],
)
def test_a_folder_tells_whether_to_lower_case(
    tmp_path: Path, words: list[str], config: dict | None, normalizer: dict | None, lower: bool
) -> None:
    model = random_model(words, lower_case=lower)
    folder = write(tmp_path / "hf", model)
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    if normalizer is not None:
        tokenizer_json(folder / "tokenizer.json", words, **normalizer)
    rows = [model.one(query) for query in QUERIES]
    assert rows != [replace(model, lower_case=not lower).one(query) for query in QUERIES]
    close(rocketqa_paddle.load_model(folder).encode_query(QUERIES), model.vectors(rows))


@pytest.mark.parametrize(
    "changes, length",
    [({}, 64), ({"model_max_length": 17}, 17), ({"model_max_length": int(1e30)}, 64), ({"x": 1}, 64)],
)
def test_the_tokenizer_tells_the_length(tmp_path: Path, words: list[str], changes: dict, length: int) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    write_json(folder / "tokenizer_config.json", changes)
    assert convert.read(folder).lengths == {"query": length, "passage": length}


@pytest.mark.parametrize(
    "config, normalizer, problem",
    [
        ({"do_lower_case": True, "strip_accents": False}, None, "strip_accents=False with lower case True"),
        ({"do_lower_case": False, "strip_accents": True}, None, "strip_accents=True with lower case False"),
        ({}, {"lowercase": True, "strip_accents": False}, "strip_accents=False with lower case True"),
        ({}, {"lowercase": False, "strip_accents": True}, "strip_accents=True with lower case False"),
        ({"tokenize_chinese_chars": False}, None, "Han characters are not set apart"),
        ({}, {"handle_chinese_chars": False}, "Han characters are not set apart"),
    ],
)
def test_a_tokenizer_of_other_ways_is_refused(
    tmp_path: Path, words: list[str], config: dict, normalizer: dict | None, problem: str
) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    write_json(folder / "tokenizer_config.json", config)
    if normalizer is not None:
        tokenizer_json(folder / "tokenizer.json", words, **normalizer)
    with pytest.raises(ValueError, match=f"hf: {problem}"):
        convert.read(folder)


@pytest.mark.parametrize(
    "normalizer", [None, {"type": "Lowercase"}, {"type": "Sequence", "normalizers": [{"type": "NFD"}]}]
)
def test_a_normalizer_that_is_not_berts_is_not_taken_for_it(
    tmp_path: Path, words: list[str], normalizer: dict | None
) -> None:
    """Without a `do_lower_case`, which transformers would build BERT's from."""
    folder = write(tmp_path / "hf", random_model(words))
    tokenizer_json(folder / "tokenizer.json", words)
    write_json(folder / "tokenizer.json", read_json(folder / "tokenizer.json") | {"normalizer": normalizer})
    (folder / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="normalizer"):
        convert.read(folder)


def test_a_tokenizer_that_is_no_word_piece_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    (folder / "vocab.txt").unlink()
    tokenizer_json(folder / "tokenizer.json", words, kind="BPE")
    with pytest.raises(ValueError, match="tokenizer.json: the tokenizer is 'BPE', expected 'WordPiece'"):
        convert.read(folder)


# Reading: sentence-transformers -----------------------------------------------------------------

OLD_TYPES = "sentence_transformers.models.{}"
NEW_TYPES = "sentence_transformers.sentence_transformer.modules.{}"
OLD_POOLING = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def write_sentence_transformer(
    folder: Path,
    model: Model,
    pooling: Mapping[str, object],
    kinds: Sequence[str] = ("Transformer", "Pooling"),
    inside: str = "",
    types: str = OLD_TYPES,
) -> Path:
    write(folder / inside if inside else folder, model)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else inside, "type": types.format(kind)}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "pooling, config, inside, types",
    [
        ("cls", {**OLD_POOLING, "pooling_mode_cls_token": True}, "", OLD_TYPES),
        ("mean", {**OLD_POOLING, "pooling_mode_mean_tokens": True}, "0_Transformer", OLD_TYPES),
        ("cls", {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, "", NEW_TYPES),
        ("mean", {"embedding_dimension": 32, "pooling_mode": "mean"}, "", NEW_TYPES),
    ],
    ids=["old-cls", "old-mean", "new-cls", "new-mean"],
)
def test_a_sentence_transformer_pools_as_it_says_and_reads_a_passage_as_one_text(
    tmp_path: Path, words: list[str], pooling: str, config: dict, inside: str, types: str, normalize: bool
) -> None:
    kinds = ["Transformer", "Pooling", *(["Normalize"] * normalize)]
    model = random_model(words)
    folder = write_sentence_transformer(tmp_path / "st", model, config, kinds, inside, types)
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "", "document": ""}, "default_prompt_name": None},
    )
    write_json(folder / inside / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})
    model = replace(model, length=30)

    ours = rocketqa_paddle.load_model(folder, batch_size=4)
    assert convert.find(folder).format == "huggingface"
    assert describe(ours.checkpoint.network) == {
        "model_type": "dual_encoder",
        "shared": True,
        "pooling": pooling,
        "normalize": normalize,
        "temperature": 1.0,
    }
    assert ours.checkpoint.lengths == {"query": 30, "passage": 30}
    close(ours.encode_query(QUERIES), model.vectors(map(model.one, QUERIES), pooling, normalize))
    rows = [model.one(*row) for row in zip(TITLES, TEXTS, strict=True)]
    assert max(len(ids) for ids, _ in rows) == 30
    close(ours.encode_para(TEXTS, TITLES), model.vectors(rows, pooling, normalize))


def test_a_sentence_transformer_may_lower_case_by_its_own_setting(tmp_path: Path, words: list[str]) -> None:
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})
    assert not convert.read(folder).tokenizer.lower_case
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    assert convert.read(folder).tokenizer.lower_case


@pytest.mark.parametrize(
    "config, named",
    [
        ({"pooling_mode": "max"}, "'max'"),
        ({"pooling_mode": "lasttoken"}, "'lasttoken'"),
        ({"pooling_mode": ["cls", "mean"]}, r"\"?'?\['cls', 'mean'\]"),
        ({**OLD_POOLING, "pooling_mode_max_tokens": True}, "'max_tokens'"),
        ({**OLD_POOLING, "pooling_mode_mean_sqrt_len_tokens": True}, "'mean_sqrt_len_tokens'"),
        (
            {**OLD_POOLING, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"'cls\+mean'",
        ),
        (OLD_POOLING, "''"),
    ],
)
def test_another_pooling_is_refused(tmp_path: Path, words: list[str], config: dict, named: str) -> None:
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), config)
    with pytest.raises(ValueError, match=rf"1_Pooling: pooling {named}.*, expected cls or mean alone"):
        convert.read(folder)


@pytest.mark.parametrize(
    "kinds",
    [
        ["Transformer"],
        ["Transformer", "Pooling", "Dense"],
        ["Transformer", "Pooling", "Dense", "Normalize"],
        ["Transformer", "Normalize", "Pooling"],
        ["WordEmbeddings", "Pooling"],
        [],
    ],
    ids="+".join,
)
def test_other_modules_are_refused_by_name(tmp_path: Path, words: list[str], kinds: list[str]) -> None:
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"}, kinds)
    with pytest.raises(ValueError) as error:
        convert.read(folder)
    assert f"modules.json: modules {kinds}, expected Transformer, Pooling" in str(error.value)


def test_prompts_are_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    prompts = {"prompts": {"query": "query: ", "document": ""}}
    write_json(folder / "config_sentence_transformers.json", prompts)
    with pytest.raises(ValueError, match="st: prompts .*'query: '.* before the text"):
        convert.read(folder)


@pytest.mark.parametrize("text", ["{", "{}x", "[1]", '[{"type": "x"}]', '{"type": "x", "path": ""}'])
def test_a_list_of_modules_that_is_none_is_named(tmp_path: Path, words: list[str], text: str) -> None:
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    (folder / "modules.json").write_text(text)
    with pytest.raises(ValueError, match="modules.json: expected a list of modules"):
        convert.read(folder)


# Reading: cross encoders ------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("prefix, task_types", [("bert.", 0), ("ernie.", 3)])
def test_a_cross_encoder_gives_the_oracles_scores(
    tmp_path: Path, words: list[str], prefix: str, task_types: int, labels: int
) -> None:
    model = random_model(words, labels, task_types=task_types)
    ours = rocketqa_paddle.load_model(write(tmp_path / "hf", model, prefix), batch_size=4)
    rows = [model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)]
    logits = model.logits(rows)
    expected = logits[:, 0] if labels == 1 else expit(logits[:, 1] - logits[:, 0])
    assert np.ptp(expected) > 0.1
    close(ours.matching(QUERIES, TEXTS, TITLES), expected)
    assert ours.checkpoint.network.head == {1: "pooled_logit", 2: "classes"}[labels]
    assert ours.checkpoint.lengths == {"pair": 64}


def write_new_cross_encoder(folder: Path, model: Model) -> Path:
    """As sentence-transformers 6 writes one: with a list of modules, of which the encoder is the only one."""
    write(folder, model, "bert.", architectures=["BertForSequenceClassification"])
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    settings = {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "scores",
    }
    write_json(folder / "sentence_bert_config.json", settings)
    settings = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", settings)
    return folder


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_with_a_list_of_modules_gives_the_oracles_scores(
    tmp_path: Path, words: list[str], labels: int
) -> None:
    model = random_model(words, labels)
    folder = write_new_cross_encoder(tmp_path / "ce", model)
    assert convert.read_encoder(folder).config.num_layers == 2
    checkpoint = convert.read(folder)
    rows = [model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)]
    logits = model.logits(rows)
    expected = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    close(retrieval.score_pairs(checkpoint, QUERIES, TITLES, TEXTS), expected)


def test_a_classifier_of_three_labels_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write(tmp_path / "hf", random_model(words, labels=3), "bert.")
    with pytest.raises(ValueError, match="hf: a classifier of 3 labels, expected 1 .* or 2"):
        convert.read(folder)


def test_a_classifier_of_tokens_which_has_no_pooler_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write(tmp_path / "hf", random_model(words, labels=2), "bert.")
    kept = load_file(folder / "model.safetensors")
    save_file({n: a for n, a in kept.items() if "pooler" not in n}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing pooler.bias \[32\]\n  missing pooler.weight \[32, 32\]"):
        convert.read(folder)


# Reading: what is refused -----------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_all_listed(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words, labels=1)
    folder = write(tmp_path / "hf", model, "bert.")
    held = load_file(folder / "model.safetensors")
    del held["bert.encoder.layer.1.output.dense.bias"], held["classifier.bias"]
    held["bert.encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    held["bert.embeddings.adapter.weight"] = np.zeros((3, 4), np.float32)
    held["bert.encoder.layer.0.intermediate.dense.weight"] = np.zeros((48, 31), np.float32)
    held["bert.embeddings.position_embeddings.weight"] = np.zeros((63, 32), np.float32)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(ValueError) as error:
        convert.read(folder)
    text = str(error.value)
    assert str(folder) in text
    assert text.splitlines()[1:] == [
        "  missing ernie.layers.1.ffn_out.bias [32]",
        "  missing output.bias [1]",
        "  left over ernie.embeddings.adapter.weight [3, 4]",
        "  left over ernie.encoder.layer.2.output.dense.bias [32]",
        "  ernie.layers.0.ffn_in.weight is [31, 48], expected [32, 48]",
        "  ernie.position_embedding.weight is [63, 32], expected [64, 32]",
    ]


def test_a_vocabulary_larger_than_the_encoder_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    (folder / "vocab.txt").write_text("\n".join([*words, "more"]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"vocab.txt: {len(words) + 1} tokens, but .* has {len(words)}"):
        convert.read(folder)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"model_type": "roberta"}, "config.json: model_type 'roberta', expected 'bert' or 'ernie'"),
        ({"model_type": "distilbert"}, "model_type 'distilbert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key', expected"),
        ({"hidden_act": "gelu_new"}, "activation='gelu_new'"),
        ({"hidden_size": None}, "config.json: no 'hidden_size'"),
        ({"vocab_size": None}, "config.json: no 'vocab_size'"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_heads=5"),
    ],
)
def test_a_config_of_another_network_is_refused(
    tmp_path: Path, words: list[str], changes: dict, problem: str
) -> None:
    folder = write(tmp_path / "hf", random_model(words), **changes)
    with pytest.raises(ValueError, match=problem):
        convert.read(folder)


@pytest.mark.parametrize("missing", ["model.safetensors", "vocab.txt", "1_Pooling/config.json"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, words: list[str], missing: str) -> None:
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        convert.read(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_weights_in_another_file_are_named_with_what_to_do(
    tmp_path: Path, words: list[str], name: str
) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(FileNotFoundError) as error:
        convert.read(folder)
    assert f"there is {name}: save the model as one safetensors file first" in str(error.value)


def test_a_safetensors_file_that_is_cut_off_is_refused(tmp_path: Path, words: list[str]) -> None:
    path = write(tmp_path / "hf", random_model(words)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        convert.read(path.parent)


# Reading: two towers ----------------------------------------------------------------------------


def write_towers(folder: Path, query: Model, passage: Model) -> Path:
    write(folder / "query", query)
    write(folder / "passage", passage)
    return folder


def test_two_folders_side_by_side_are_two_towers(tmp_path: Path, words: list[str]) -> None:
    query, passage = random_model(words, seed=1), random_model(words, seed=2)
    ours = rocketqa_paddle.load_model(write_towers(tmp_path / "both", query, passage), batch_size=4)
    assert not ours.checkpoint.network.shared
    close(ours.encode_query(QUERIES), query.vectors(map(query.one, QUERIES)))
    rows = [passage.pair(*row) for row in zip(TITLES, TEXTS, strict=True)]
    close(ours.encode_para(TEXTS, TITLES), passage.vectors(rows))


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"layers": 3}, "other sizes"),
        ({"epsilon": 1e-5}, "other sizes"),
        ({"words": slice(None, None, -1)}, "other vocabularies"),
        ({"lower_case": False}, "other tokenizer settings"),
        ({"pooling": "mean"}, "other pooling"),
        ({"labels": 1}, "passage: expected an encoder of one tower"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_two_folders_that_do_not_belong_together_are_refused(
    tmp_path: Path, words: list[str], change: dict, problem: str
) -> None:
    special, other = words[:5], words[5:]
    changed = dict(change)
    turned_words = [*special, *other[changed.pop("words", slice(None))]]
    pooling, lower = changed.pop("pooling", ""), changed.pop("lower_case", True)
    write(tmp_path / "both" / "query", random_model(words))
    folder, model = tmp_path / "both" / "passage", random_model(turned_words, **changed)
    if pooling:
        write_sentence_transformer(folder, model, {"pooling_mode": pooling})
    else:
        write(folder, model)
    write_json(folder / "tokenizer_config.json", {"do_lower_case": lower})
    with pytest.raises(ValueError, match=problem):
        convert.read(tmp_path / "both")


# Writing ----------------------------------------------------------------------------------------

LENGTHS = {"query": 24, "passage": 33, "pair": 33}


def tokenizer_of(folder: Path, words: Sequence[str], **settings: bool) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return Tokenizer(folder / "vocab.txt", **settings)


def dual(tokenizer: Tokenizer, words: Sequence[str], sizes: Mapping[str, Any], **network: Any) -> Checkpoint:
    models = [random_model(words, seed=seed, **sizes) for seed in (1, 2)]
    encoder = DualEncoder(toy.ernie_config(models[0].sizes, initializer_range=0.03), **network)
    for tower, model in zip((encoder.query, encoder.passage), models, strict=True):
        load_arrays(tower, reference.for_package(model.variables, model.sizes), "oracle")
    encoder.eval()
    return Checkpoint(encoder, tokenizer, {name: LENGTHS[name] for name in ("query", "passage")})


def cross(tokenizer: Tokenizer, words: Sequence[str], sizes: Mapping[str, Any], head: str) -> Checkpoint:
    model = random_model(words, labels=2 if head == "classes" else 1, **sizes)
    encoder, held = (
        CrossEncoder(toy.ernie_config(model.sizes, initializer_range=0.03), head=head, dropout=0.0),
        model.variables,
    )
    load_arrays(encoder.ernie, reference.for_package(held, model.sizes), "oracle")
    load_arrays(encoder.output, {"weight": held["_cls_out_w"], "bias": held["_cls_out_b"]}, "oracle")
    if head != "logit":
        pooler = {"weight": held["pooled_fc.w_0"], "bias": held["pooled_fc.b_0"]}
        load_arrays(encoder.pooler, pooler, "oracle")
    encoder.eval()
    return Checkpoint(encoder, tokenizer, {"pair": LENGTHS["pair"]})


Make = Callable[[Path, Sequence[str]], Checkpoint]


def making(
    make: Callable[..., Checkpoint],
    network: Mapping[str, Any],
    sizes: Mapping[str, Any] | None = None,
    **tokenizer: bool,
) -> Make:
    """What makes a checkpoint of that kind in a folder, with those words."""
    return lambda folder, words: make(
        tokenizer_of(folder, words, **tokenizer), words, dict(sizes or {}), **network
    )


MEAN = {"pooling": "mean", "normalize": True}
TASKS = {"task_types": 3, "sentence_types": 4, "epsilon": 1e-5}
DUAL_KINDS = {
    "cls": making(dual, {"shared": True}),
    "mean": making(dual, {"shared": True, "pooling": "mean", "temperature": 4.0}),
    "normalised": making(dual, {"shared": True, "normalize": True}, {"epsilon": 1e-5}),
    "one-segment": making(dual, {"shared": True, **MEAN, "temperature": 0.05}, one_segment=True),
    "for-cn": making(dual, {"shared": True, **MEAN}, for_cn=True),
    "cased": making(dual, {"shared": True}, {"activation": "relu", "heads": 2}, lower_case=False),
    "ernie": making(dual, {"shared": True}, TASKS),
    "two-towers": making(dual, {"shared": False}),
    "two-towers-ernie": making(dual, {**MEAN, "temperature": 0.5}, TASKS, for_cn=True, lower_case=False),
}
CROSS_KINDS = {
    "logit": making(cross, {"head": "logit"}),
    "classes": making(cross, {"head": "classes"}),
    "pooled-logit": making(cross, {"head": "pooled_logit"}, {"activation": "relu"}, lower_case=False),
    "logit-ernie": making(cross, {"head": "logit"}, TASKS),
    "classes-ernie": making(cross, {"head": "classes"}, TASKS, for_cn=True),
}
dual_kinds = pytest.mark.parametrize("make", DUAL_KINDS.values(), ids=DUAL_KINDS)
cross_kinds = pytest.mark.parametrize("make", CROSS_KINDS.values(), ids=CROSS_KINDS)
KINDS = DUAL_KINDS | CROSS_KINDS
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def scores(checkpoint: Checkpoint) -> np.ndarray:
    """A cross encoder's, computed by the package."""
    return retrieval.score_pairs(checkpoint, QUERIES, TITLES, TEXTS)


def vectors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """A dual encoder's, computed by the package; those of passages not divided by the temperature."""
    passages = retrieval.encode_passages(checkpoint, TITLES, TEXTS) * checkpoint.network.temperature
    return {"query": retrieval.encode_queries(checkpoint, QUERIES), "passage": passages}


@kinds
def test_what_is_written_is_read_back_whole(tmp_path: Path, words: list[str], make: Make) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    (tmp_path / "own" / "vocab.txt").unlink()
    again = convert.read(tmp_path / "hf")
    assert convert.find(tmp_path / "hf").format == "huggingface"
    assert again.digest() == checkpoint.digest()
    assert describe(again.network) == describe(checkpoint.network)
    assert again.network.config == checkpoint.network.config
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    assert again.tokenizer.vocabulary == checkpoint.tokenizer.vocabulary
    assert again.lengths == checkpoint.lengths
    assert not again.network.training
    assert convert.largest_difference(checkpoint, again) == 0


@kinds
def test_our_settings_stand_under_a_key_of_our_own(tmp_path: Path, words: list[str], make: Make) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    for config in sorted((tmp_path / "hf").glob("**/config.json")):
        if "Pooling" in config.parent.name:
            continue
        kept = read_json(config)["rocketqa_paddle"]
        lengths = kept.pop("lengths")
        assert kept.pop("tokenizer") == checkpoint.tokenizer.settings
        expected = describe(checkpoint.network)
        if side := config.parent.name.removeprefix("hf"):
            assert lengths == dict.fromkeys(("query", "passage"), checkpoint.lengths[side])
            assert kept == expected | {"shared": True}
        else:
            assert lengths == checkpoint.lengths
            assert kept == expected


def written(folder: Path) -> Model:
    """A folder as transformers reads it: its own settings and arrays, by the names of this test."""
    config = read_json(folder / "config.json")
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
        epsilon=config["layer_norm_eps"],
    )
    assert config["model_type"] == ("ernie" if sizes.task_types else "bert")
    [architecture] = config["architectures"]
    assert architecture.startswith(config["model_type"].capitalize())
    classifier = architecture.endswith("ForSequenceClassification")
    table = names(sizes, f"{config['model_type']}." if classifier else "", classifier)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # some versions of transformers ask for it
    held = load_file(folder / "model.safetensors")
    assert held.keys() == set(table.values())
    assert {array.dtype for array in held.values()} == {np.dtype(np.float32)}
    if classifier:
        labels = len(config["id2label"])  # from which transformers counts them
        assert held["classifier.weight"].shape == (labels, sizes.hidden)
    variables = {ours: turned(ours, held[theirs]) for ours, theirs in table.items()}
    return Model(sizes, variables, (folder / "vocab.txt").read_text(encoding="utf-8").splitlines())


def fast_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """A folder's `tokenizer.json` with what transformers makes of its `tokenizer_config.json`."""
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = read_json(folder / "tokenizer_config.json")
    fast.enable_truncation(config["model_max_length"])
    fast.add_special_tokens([value for name, value in config.items() if name.endswith("_token")])
    fast.encode_special_tokens = config.get("split_special_tokens", False)
    return fast


def rows_of(folder: Path, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Sequence2]:
    return [(encoding.ids, encoding.type_ids) for encoding in fast_tokenizer(folder).encode_batch(texts)]


def passages_there(checkpoint: Checkpoint) -> list[str] | list[tuple[str, str]]:
    """Passages as the other library is to be given them."""
    pairs = list(zip(TITLES, TEXTS, strict=True))
    return [" ".join(pair) for pair in pairs] if checkpoint.tokenizer.one_segment else pairs


def pairs_there(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Queries and passages, as above. `for_cn` would let a space between title and text vanish."""
    space = "\n" if checkpoint.tokenizer.for_cn else " "
    return [(q, f"{title}{space}{text}") for q, title, text in zip(QUERIES, TITLES, TEXTS, strict=True)]


def sides(checkpoint: Checkpoint, folder: Path) -> Iterator[tuple[str, Path]]:
    for side in ("query", "passage"):
        yield side, folder if checkpoint.network.shared else folder / side


@dual_kinds
def test_the_arrays_of_a_dual_encoder_give_our_vectors_as_sentence_transformers_computes_them(
    tmp_path: Path, words: list[str], make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    expected = vectors(checkpoint)
    for side, folder in sides(checkpoint, tmp_path / "hf"):
        modules = read_json(folder / "modules.json")
        assert [module["type"].rpartition(".")[2] for module in modules][:2] == ["Transformer", "Pooling"]
        assert (folder / modules[0]["path"]) == folder
        pooling = read_json(folder / modules[1]["path"] / "config.json")
        chosen = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode") and on is True]
        mode = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}[chosen.pop()]
        assert not chosen
        normalize = [module["type"].rpartition(".")[2] for module in modules][2:] == ["Normalize"]
        assert all((folder / module["path"]).is_dir() for module in modules)
        longest = max(checkpoint.lengths.values()) if checkpoint.network.shared else checkpoint.lengths[side]
        assert read_json(folder / "sentence_bert_config.json")["max_seq_length"] == longest
        assert read_json(folder / "config_sentence_transformers.json")["similarity_fn_name"] == (
            "cosine" if checkpoint.network.normalize else "dot"
        )

        texts = QUERIES if side == "query" else passages_there(checkpoint)
        close(written(folder).vectors(rows_of(folder, texts), mode, normalize), expected[side])


@cross_kinds
def test_the_arrays_of_a_cross_encoder_give_our_scores_as_transformers_computes_them(
    tmp_path: Path, words: list[str], make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    model = written(tmp_path / "hf")
    logits = model.logits(rows_of(tmp_path / "hf", pairs_there(checkpoint)))
    two = checkpoint.network.head == "classes"
    close(logits[:, 1] - logits[:, 0] if two else logits[:, 0], scores(checkpoint))
    assert logits.shape[1] == (2 if two else 1)
    assert not (tmp_path / "hf" / "modules.json").exists()
    config = read_json(tmp_path / "hf" / "config.json")
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"


def test_a_head_without_pooler_is_written_with_one_that_changes_nothing(
    tmp_path: Path, words: list[str]
) -> None:
    """tanh(x / 2^16) is x / 2^16 in single precision, and a power of two costs no digit."""
    checkpoint = CROSS_KINDS["logit"](tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    held = written(tmp_path / "hf").variables
    state = np.random.default_rng(3).normal(0, 3, (100, 32)).astype(np.float32)
    pooled = np.tanh(state @ held["pooled_fc.w_0"] + held["pooled_fc.b_0"])
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled * np.float32(2**16), state, rtol=3e-7)
    ours = checkpoint.network.output.weight.numpy()
    np.testing.assert_array_equal(held["_cls_out_w"], ours * np.float32(2**16))


def test_a_head_whose_pooler_was_trained_elsewhere_keeps_it(tmp_path: Path, words: list[str]) -> None:
    """There the identity is a pooler as any other; training it makes another head of it."""
    convert.write(CROSS_KINDS["logit"](tmp_path / "own", words), tmp_path / "hf", "huggingface")
    path = tmp_path / "hf" / "model.safetensors"
    held, rng = load_file(path), np.random.default_rng(2)
    held["bert.pooler.dense.weight"] += rng.normal(0, 0.1, (32, 32)).astype(np.float32)
    held["classifier.weight"] *= np.float32(2.0**-16)
    save_file(held, path, metadata={"format": "pt"})
    again = convert.read(tmp_path / "hf")
    expected = written(tmp_path / "hf").logits(rows_of(tmp_path / "hf", pairs_there(again)))
    close(scores(again), expected[:, 0])


def test_a_pooler_of_its_own_that_looks_like_it_is_kept_apart(tmp_path: Path, words: list[str]) -> None:
    """Only the very identity that `write` makes is undone: a bias or another scale is a real pooler."""
    model = random_model(words, labels=1)
    for name, scale, bias in (("bias", 2.0**-16, 1e-3), ("scale", 2.0**-3, 0.0)):
        model.variables["pooled_fc.w_0"] = np.eye(32, dtype=np.float32) * np.float32(scale)
        model.variables["pooled_fc.b_0"] = np.full(32, bias, np.float32)
        checkpoint = convert.read(write(tmp_path / name, model, "bert."))
        assert checkpoint.network.head == "pooled_logit"
        rows = [model.pair(*row) for row in zip(QUERIES, TITLES, TEXTS, strict=True)]
        close(scores(checkpoint), model.logits(rows)[:, 0])


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("for_cn", [True, False])
def test_the_tokenizer_that_is_written_gives_our_ids(tmp_path: Path, lower_case: bool, for_cn: bool) -> None:
    words = covering(AWKWARD)
    tokens = tokenizer_of(tmp_path / "own", words, lower_case=lower_case, for_cn=for_cn)
    checkpoint = dual(tokens, words, {"positions": 300}, shared=True)
    checkpoint.lengths.update(query=300, passage=300)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    theirs = rows_of(tmp_path / "hf", AWKWARD)
    assert theirs == tokens.pack_queries(AWKWARD, 300)
    assert len({i for ids, _ in theirs for i in ids}) > 60
    pairs = list(zip(AWKWARD, AWKWARD[::-1], strict=True))
    assert rows_of(tmp_path / "hf", pairs) == tokens.pack_passages(AWKWARD, AWKWARD[::-1], 300)


def covering(texts: Iterable[str]) -> list[str]:
    """A vocabulary with every character of the texts, plain, lower-cased and decomposed: hardly an [UNK]."""
    joined = "".join(texts)
    forms = joined + joined.lower()
    forms += unicodedata.normalize("NFD", forms)
    letters = sorted({c for c in forms if c.isprintable() and not c.isspace()})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]


SPECIAL = ["a [MASK] b", "[SEP]", "x [CLS]y [PAD] [UNK]"]


def test_text_that_looks_like_a_special_token_is_text_there_too(tmp_path: Path, words: list[str]) -> None:
    checkpoint = DUAL_KINDS["cls"](tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    expected = checkpoint.tokenizer.pack_queries(SPECIAL, 33)
    assert not {0, 4} & {i for row in expected for i in row.token_ids}
    assert rows_of(tmp_path / "hf", SPECIAL) == expected


def test_ids_that_no_token_has_keep_their_place(tmp_path: Path) -> None:
    """A vocabulary of `token TAB id` may have gaps; `vocab.txt` counts lines."""
    lines = ["[PAD]\t0", "[UNK]\t1", "[CLS]\t2", "[SEP]\t3", "a\t7", "b\t5"]
    (tmp_path / "gaps.txt").write_text("\n".join(lines) + "\n")
    checkpoint = dual(Tokenizer(tmp_path / "gaps.txt"), ["x"] * 8, {}, shared=True)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    written_lines = (tmp_path / "hf" / "vocab.txt").read_text().splitlines()
    assert [written_lines[i] for i in (0, 1, 2, 3, 5, 7)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "b", "a"]
    assert len(written_lines) == len(set(written_lines)) == 8
    assert rows_of(tmp_path / "hf", ["a b"]) == [([2, 7, 5, 3], [0, 0, 0, 0])]
    assert convert.read(tmp_path / "hf").tokenizer.encode(["a b"]) == [[7, 5]]


@pytest.mark.parametrize("section", [[1], "x", {"model_type": "dual_encoder"}, {"head": None}], ids=repr)
def test_a_section_of_ours_that_is_not_whole_is_named(
    tmp_path: Path, words: list[str], section: object
) -> None:
    convert.write(CROSS_KINDS["classes"](tmp_path / "own", words), tmp_path / "hf", "huggingface")
    config = read_json(tmp_path / "hf" / "config.json")
    if section == {"head": None}:
        section = {key: value for key, value in config["rocketqa_paddle"].items() if key != "head"}
    write_json(tmp_path / "hf" / "config.json", config | {"rocketqa_paddle": section})
    with pytest.raises(ValueError, match="config.json: the section rocketqa_paddle is not whole"):
        convert.read(tmp_path / "hf")


@pytest.mark.parametrize(
    "change", [{"hidden_size": "48"}, {"type_vocab_size": None}, {"num_attention_heads": 5}]
)
def test_a_wrong_size_is_refused_with_the_file(tmp_path: Path, words: list[str], change: dict) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    write_json(folder / "config.json", read_json(folder / "config.json") | change)
    with pytest.raises(ValueError, match=r"hf/config\.json: "):
        convert.read(folder)


def test_writing_replaces_a_model_but_no_other_folder(tmp_path: Path, words: list[str]) -> None:
    one = DUAL_KINDS["cls"](tmp_path / "own", words)
    towers, pair = DUAL_KINDS["two-towers"](tmp_path / "own", words), CROSS_KINDS["logit"](tmp_path, words)
    for checkpoint in (one, pair, one):
        convert.write(checkpoint, tmp_path / "hf", "huggingface")
        assert convert.read(tmp_path / "hf").digest() == checkpoint.digest()
    for _ in range(2):
        convert.write(towers, tmp_path / "towers", "huggingface")
        assert convert.read(tmp_path / "towers").digest() == towers.digest()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    for checkpoint in (one, towers):
        with pytest.raises(ValueError, match="work holds thesis.txt, which would be lost"):
            convert.write(checkpoint, tmp_path / "work", "huggingface")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.txt"]
    write_json(tmp_path / "site" / "config.json", {"theme": "dark"})
    with pytest.raises(ValueError, match="site holds config.json, which would be lost"):
        convert.write(one, tmp_path / "site", "huggingface")


def test_a_sentence_piece_vocabulary_cannot_be_written(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = DUAL_KINDS["cls"](tmp_path / "own", words)
    monkeypatch.setattr(
        "rocketqa_paddle.networks.tokenization._SentencePieces", type(checkpoint.tokenizer._pieces)
    )
    with pytest.raises(ValueError, match="is a SentencePiece model, expected a vocabulary of word pieces"):
        convert.write(checkpoint, tmp_path / "hf", "huggingface")
    assert not (tmp_path / "hf").exists()


# What all formats have in common ----------------------------------------------------------------

FORMATS = ("native", "reference", "paddlenlp", "huggingface")


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", ["dual", "shared", "logit", "classes"])
def test_a_model_is_found_and_read_in_every_format(
    tmp_path: Path, words: list[str], kind: str, to: convert.Format
) -> None:
    sizes, tokens = {"epsilon": 1e-5, "ffn": 128}, tokenizer_of(tmp_path / "own", words)
    if kind in ("dual", "shared"):
        checkpoint = dual(tokens, words, sizes, shared=kind == "shared")
    else:
        checkpoint = cross(tokens, words, sizes, head=kind)
    convert.write(checkpoint, tmp_path / "model", to)
    assert convert.find(tmp_path / "model").format == to
    again = convert.read(tmp_path / "model", kind=checkpoint.kind)
    assert again.digest() == checkpoint.digest()
    assert convert.largest_difference(checkpoint, again) == 0
    other = {"dual_encoder": "cross_encoder", "cross_encoder": "dual_encoder"}[checkpoint.kind]
    with pytest.raises(ValueError, match=f"model is a {checkpoint.kind}, expected a {other}"):
        convert.read(tmp_path / "model", kind=other)


def test_a_config_file_stands_for_its_folder(tmp_path: Path, words: list[str]) -> None:
    model = random_model(words)
    folder = write(tmp_path / "hf", model)
    assert convert.find(folder / "config.json") == convert.find(folder)
    with pytest.raises(ValueError, match="vocab.txt is a file, expected the JSON"):
        convert.find(folder / "vocab.txt")


def test_folders_named_query_and_passage_inside_a_model_are_no_towers(
    tmp_path: Path, words: list[str]
) -> None:
    folder = write(tmp_path / "hf", random_model(words))
    write_towers(folder, random_model(words, seed=1), random_model(words, seed=2))
    assert convert.read(folder).network.shared


def test_a_folder_without_model_is_told_apart_from_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no model there. Expected a folder with config.json"):
        convert.find(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere': no such file or folder"):
        convert.find(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="did you mean v1_marco_de"):
        convert.find("v1_marco_ed")


@pytest.mark.parametrize("kind", ["mean", "classes"])
def test_the_largest_difference_is_that_of_the_outputs(tmp_path: Path, words: list[str], kind: str) -> None:
    """A bias at the end moves a score or an element by itself, which a sum or a mean would not show."""
    one, other = (KINDS[kind](tmp_path / "own", words) for _ in range(2))
    assert convert.largest_difference(one, other) == 0
    if kind == "classes":
        bias = other.network.output.bias
        bias.set_value(bias.numpy() + np.array([0.25, 1.0], np.float32))  # the odds grow by their difference
        assert convert.largest_difference(one, other) == pytest.approx(0.75, abs=1e-5)
        assert convert.largest_difference(other, one) == pytest.approx(0.75, abs=1e-5)
    else:
        bias = other.network.query.layers[-1].ffn_norm.bias
        moved = bias.numpy()
        moved[5] -= 0.5
        bias.set_value(moved)
        assert convert.largest_difference(one, other) == pytest.approx(0.5, abs=1e-5)


def test_the_largest_difference_sees_both_towers(tmp_path: Path, words: list[str]) -> None:
    for side in ("query", "passage"):
        one, other = (KINDS["two-towers"](tmp_path / "own", words) for _ in range(2))
        bias = getattr(other.network, side).layers[-1].ffn_norm.bias
        bias.set_value(bias.numpy() + np.float32(0.5))
        assert convert.largest_difference(one, other) == pytest.approx(0.5, abs=1e-5)


def test_models_of_two_kinds_have_no_difference(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ValueError):
        convert.largest_difference(
            KINDS["cls"](tmp_path / "a", words), KINDS["classes"](tmp_path / "b", words)
        )


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("cls", ["queries are cut there at 33 tokens, not at 24", "a passage is a pair there"]),
        ("mean", ["queries are cut", "not divided by the temperature 4.0", "a passage is a pair"]),
        ("one-segment", ["queries are cut", "not divided by the temperature 0.05"]),
        ("for-cn", ["queries are cut", "a passage is a pair"]),
        ("two-towers", ["two towers: the folders query and passage", "a passage is a pair"]),
        ("logit", ["it has no pooler; the one written there is the identity in float32"]),
        ("classes", []),
        ("pooled-logit", []),
        ("classes-ernie", []),
    ],
)
def test_notes_for_hugging_face_tell_what_is_different_there(
    tmp_path: Path, words: list[str], kind: str, expected: list[str]
) -> None:
    checkpoint = KINDS[kind](tmp_path / "own", words)
    found = convert.notes(checkpoint, "huggingface")
    assert len(found) == len(expected), found
    for note, part in zip(found, expected, strict=True):
        assert part in note
    assert convert.notes(checkpoint, "native") == convert.notes(checkpoint, "reference") == []


def test_lengths_that_are_equal_need_no_note(tmp_path: Path, words: list[str]) -> None:
    checkpoint = KINDS["one-segment"](tmp_path / "own", words)
    checkpoint.lengths["query"] = checkpoint.lengths["passage"]
    assert [note for note in convert.notes(checkpoint, "huggingface") if "cut" in note] == []


# With transformers and sentence-transformers ----------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sentence_transformers(transformers: ModuleType) -> ModuleType:
    return pytest.importorskip("sentence_transformers")


quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def states(transformers: ModuleType, folder: Path, texts: Sequence[Any]) -> list[np.ndarray]:
    """The states of every text's tokens, by transformers, in one padded batch."""
    import torch

    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    network, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    batch = tokens([list(t) if isinstance(t, tuple) else t for t in texts], padding=True, truncation=True)
    batch = {name: torch.tensor(values) for name, values in batch.items()}
    with torch.no_grad():
        found = network.eval()(**batch).last_hidden_state.numpy()
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) > 1
    return [row[:length] for row, length in zip(found, lengths, strict=True)]


@quiet
@dual_kinds
def test_transformers_computes_our_states_from_what_is_written(
    tmp_path: Path, words: list[str], transformers: ModuleType, make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    expected, network = vectors(checkpoint), checkpoint.network
    for side, folder in sides(checkpoint, tmp_path / "hf"):
        texts = QUERIES if side == "query" else passages_there(checkpoint)
        pooled = [
            row[0] if network.pooling == "cls" else row.mean(axis=0)
            for row in states(transformers, folder, texts)
        ]
        if network.normalize:
            pooled = [vector / np.linalg.norm(vector) for vector in pooled]
        close(np.stack(pooled), expected[side])


@quiet
@dual_kinds
def test_sentence_transformers_computes_our_vectors_from_what_is_written(
    tmp_path: Path, words: list[str], sentence_transformers: ModuleType, make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    expected = vectors(checkpoint)
    for side, folder in sides(checkpoint, tmp_path / "hf"):
        theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        texts = QUERIES if side == "query" else passages_there(checkpoint)
        found = theirs.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        close(found, expected[side])
        first = (
            sentence_transformers.util.cos_sim
            if checkpoint.network.normalize
            else (sentence_transformers.util.dot_score)
        )
        close(theirs.similarity(found, found).numpy(), first(found, found).numpy())


@quiet
@cross_kinds
def test_transformers_and_sentence_transformers_compute_our_scores_from_what_is_written(
    tmp_path: Path,
    words: list[str],
    transformers: ModuleType,
    sentence_transformers: ModuleType,
    make: Make,
) -> None:
    import torch

    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    network, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    pairs = pairs_there(checkpoint)
    batch = tokens(*map(list, zip(*pairs, strict=True)), padding=True, truncation=True)
    with torch.no_grad():
        logits = network.eval()(**batch.convert_to_tensors("pt")).logits.numpy()
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "hf"), device="cpu")
    for found in (logits, theirs.predict(pairs, show_progress_bar=False)):
        two = checkpoint.network.head == "classes"
        assert found.reshape(4, -1).shape == (4, 2 if two else 1)
        close(found[:, 1] - found[:, 0] if two else found.reshape(-1), scores(checkpoint))


@quiet
@kinds
def test_what_they_load_and_save_again_is_our_model_still(
    tmp_path: Path, words: list[str], sentence_transformers: ModuleType, make: Make
) -> None:
    checkpoint = make(tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    cross = checkpoint.kind == "cross_encoder"
    load = sentence_transformers.CrossEncoder if cross else sentence_transformers.SentenceTransformer
    folders = [folder for folder in (tmp_path / "hf", *(tmp_path / "hf").iterdir()) if folder.is_dir()]
    for folder in folders:
        if (folder / "model.safetensors").is_file():
            target = tmp_path / "again" / folder.relative_to(tmp_path / "hf")
            load(str(folder), device="cpu").save_pretrained(str(target))
    again = convert.read(tmp_path / "again")
    assert again.digest() == checkpoint.digest()
    assert again.lengths == checkpoint.lengths
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    assert convert.largest_difference(checkpoint, again) == 0


@quiet
def test_text_that_looks_like_a_special_token_is_text_to_transformers(
    tmp_path: Path, words: list[str], transformers: ModuleType
) -> None:
    checkpoint = DUAL_KINDS["cls"](tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    expected = checkpoint.tokenizer.pack_queries(SPECIAL, 33)
    assert tokens(SPECIAL)["input_ids"] == [row.token_ids for row in expected]


def config_of(transformers: ModuleType, words: Sequence[str], **changes: Any) -> Any:
    """A small network's settings; weights so large that every part shows."""
    kind = transformers.ErnieConfig if changes.get("use_task_id") else transformers.BertConfig
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 300,
        "initializer_range": 0.3,
    }
    return kind(**(sizes | changes))


def saved_by_transformers(
    transformers: ModuleType,
    folder: Path,
    words: Sequence[str],
    model: str = "Model",
    lower_case: bool = True,
    **changes: Any,
) -> Path:
    """A random model, its biases and norms random too, and its tokenizer, as transformers saves them."""
    import torch

    torch.manual_seed(5)
    config = config_of(transformers, words, **changes)
    network = getattr(transformers, f"{config.model_type.capitalize()}{model}")(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    tokenizer_of(folder / "words", words)
    tokens = transformers.BertTokenizer(
        str(folder / "words" / "vocab.txt"), do_lower_case=lower_case, model_max_length=200
    )
    tokens.save_pretrained(folder)
    (folder / "words" / "vocab.txt").unlink()
    (folder / "words").rmdir()
    return folder


LONG = [*AWKWARD, "x 检 " * 200]


@quiet
@pytest.mark.parametrize(
    "model, changes",
    [
        pytest.param("Model", {}, id="bert"),
        pytest.param("Model", {"hidden_act": "relu", "layer_norm_eps": 1e-5}, id="relu"),
        pytest.param("Model", {"lower_case": False, "type_vocab_size": 4}, id="cased"),
        pytest.param("Model", {"use_task_id": True, "task_type_vocab_size": 3}, id="ernie"),
        pytest.param("ForMaskedLM", {}, id="masked-lm"),
        pytest.param("ForPreTraining", {"use_task_id": True, "task_type_vocab_size": 5}, id="pretraining"),
    ],
)
def test_what_transformers_saves_is_read_with_its_ids_and_states(
    tmp_path: Path, transformers: ModuleType, model: str, changes: dict
) -> None:
    folder = saved_by_transformers(transformers, tmp_path / "hf", covering(AWKWARD), model, **changes)
    ours, tokens = convert.read(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.lengths == {"query": 200, "passage": 200}
    theirs = tokens(LONG, truncation=True)
    packed = ours.tokenizer.pack_queries(LONG, 200)
    assert [row.token_ids for row in packed] == theirs["input_ids"]
    pairs = tokens(AWKWARD, AWKWARD[::-1], truncation=True)
    packed = ours.tokenizer.pack_passages(AWKWARD, AWKWARD[::-1], 200)
    assert [row.token_ids for row in packed] == pairs["input_ids"]
    assert [row.type_ids for row in packed] == pairs["token_type_ids"]

    import torch

    network = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokens(LONG, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(**batch).last_hidden_state[:, 0].numpy()
    close(retrieval.encode_queries(ours, LONG), expected)


@quiet
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"use_task_id": True, "task_type_vocab_size": 3}], ids=["bert", "ernie"]
)
@pytest.mark.parametrize("saver", ["transformers", "sentence_transformers"])
def test_a_cross_encoder_that_they_save_is_read_with_its_scores(
    tmp_path: Path,
    words: list[str],
    sentence_transformers: ModuleType,
    saver: str,
    changes: dict,
    labels: int,
) -> None:
    import torch
    import transformers

    folder = saved_by_transformers(
        transformers, tmp_path / "hf", words, "ForSequenceClassification", num_labels=labels, **changes
    )
    theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    if saver == "sentence_transformers":
        theirs.save_pretrained(str(tmp_path / "again"))
        folder = tmp_path / "again"
    ours = convert.read(folder)
    found = theirs.predict(pairs_there(ours), show_progress_bar=False).reshape(4, -1)
    close(scores(ours), found[:, 0] if labels == 1 else found[:, 1] - found[:, 0])


@quiet
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_sentence_transformer_that_is_saved_is_read_with_its_vectors(
    tmp_path: Path, sentence_transformers: ModuleType, pooling: str, normalize: bool
) -> None:
    import transformers
    from sentence_transformers import models

    words = covering([*AWKWARD, *QUERIES, *TEXTS])
    folder = saved_by_transformers(transformers, tmp_path / "hf", words)
    modules = [models.Transformer(str(folder), max_seq_length=50), models.Pooling(32, pooling_mode=pooling)]
    theirs = sentence_transformers.SentenceTransformer(
        modules=modules + [models.Normalize()] * normalize, device="cpu"
    )
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = convert.read(tmp_path / "st")
    assert ours.lengths == {"query": 50, "passage": 50}
    texts = [*QUERIES, *LONG]
    close(retrieval.encode_queries(ours, texts), theirs.encode(texts, show_progress_bar=False))
    one = [f"{title} {text}" for title, text in zip(TITLES, TEXTS, strict=True)]
    close(
        retrieval.encode_passages(ours, TITLES, TEXTS),
        theirs.encode(one, show_progress_bar=False),
    )
    convert.write(ours, tmp_path / "back", "huggingface")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "back"), device="cpu")
    close(again.encode(texts, show_progress_bar=False), theirs.encode(texts, show_progress_bar=False))


@quiet
def test_a_model_saved_in_bfloat16_is_refused(
    tmp_path: Path, words: list[str], transformers: ModuleType
) -> None:
    import torch

    folder = saved_by_transformers(transformers, tmp_path / "hf", words)
    network = transformers.AutoModel.from_pretrained(folder)
    network.to(torch.bfloat16).save_pretrained(folder)
    with pytest.raises(ValueError, match="model.safetensors: not a whole .* file of float32 or float16"):
        convert.read(folder)
