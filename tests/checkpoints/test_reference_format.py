"""The RocketQA toolkit's checkpoints: read with the oracle's numbers, refused with names, written back.

The checkpoints are made here: random variables, whose outputs the oracle computes, and a writer of their
files that shares nothing with the package's.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import reference
from conftest import vocabulary
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from reference import Sequence2, Sizes
from sentencepiece import SentencePieceTrainer

import rocketqa_paddle
from rocketqa_paddle.checkpoints import convert, published
from rocketqa_paddle.checkpoints.convert import reference as toolkit
from rocketqa_paddle.checkpoints.formats.reference import read_variable, write_variable
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder, describe
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model

# Making a checkpoint of the toolkit -------------------------------------------------------------

CODES = {"float16": 4, "float32": 5, "float64": 6, "int64": 3, "int32": 2, "bool": 0, "uint8": 20}
"""Paddle's numbers of data types (`VarType.Type` in `framework.proto`)."""


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def described(data_type: int, shape: Sequence[int], packed: bool = False) -> bytes:
    sizes = [varint(size) for size in shape]
    if packed:
        return b"\x08" + varint(data_type) + b"\x12" + varint(len(b"".join(sizes))) + b"".join(sizes)
    return b"\x08" + varint(data_type) + b"".join(b"\x10" + size for size in sizes)


def framed(description: bytes, data: bytes, levels: Sequence[bytes] = ()) -> bytes:
    lod = b"".join(struct.pack("<Q", len(level)) + level for level in levels)
    head = struct.pack("<IQ", 0, len(levels)) + lod + struct.pack("<Ii", 0, len(description))
    return head + description + data


def lod_tensor(array: np.ndarray, levels: Sequence[bytes] = (), packed: bool = False) -> bytes:
    """A variable's file, as the toolkit saves it."""
    return framed(described(CODES[array.dtype.name], array.shape, packed), array.tobytes(), levels)


WORDS = {token: number for number, token in enumerate(vocabulary())}
V = len(WORDS)
CLS, SEP = WORDS["[CLS]"], WORDS["[SEP]"]
NETWORKS = [
    pytest.param(Sizes(V, 24, 2, 3, 96, 40, 2), "type_vocab_size", id="bert"),
    pytest.param(Sizes(V, 16, 3, 1, 64, 40, 4, 3), "sent_type_vocab_size", id="task-embedding"),
    pytest.param(Sizes(V + 9, 32, 1, 8, 128, 64, 4, 0, "relu"), "sent_type_vocab_size", id="relu"),
    pytest.param(Sizes(V, 12, 2, 2, 48, 33, 3, 2, "relu"), "type_vocab_size", id="relu-task"),
]
TINY = Sizes(V, 8, 1, 2, 32, 40, 2)

DUAL_CONFIG = {"model_type": "dual_encoder", "q_max_seq_len": 12, "p_max_seq_len": 26}
CROSS_CONFIG = {"model_type": "cross_encoder", "max_seq_len": 33, "share_parameter": 0}
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "dual": ({**DUAL_CONFIG, "share_parameter": 0}, ("query_", "titlepara_")),
    "shared": ({**DUAL_CONFIG, "share_parameter": 1}, ("query_", "titlepara_")),
    "classes": (CROSS_CONFIG, ("",)),
    "joint": ({**CROSS_CONFIG, "joint_training": 1}, ("query_", "titlepara_", "qtp_")),
}
"""Kind -> its JSON, and the prefixes of the encoders that the toolkit saves beside one another."""
every_kind = pytest.mark.parametrize("kind", KINDS)


def variables_of(kind: str, sizes: Sizes, seed: int = 5) -> dict[str, np.ndarray]:
    rng, h, variables = np.random.default_rng(seed), sizes.hidden, {}
    for prefix in KINDS[kind][1]:
        made = reference.random_variables(sizes, rng)
        variables |= {f"{prefix}{name}": array for name, array in made.items()}
    heads = {
        "classes": {"pooled_fc.w_0": (h, h), "pooled_fc.b_0": h, "_cls_out_w": (h, 2), "_cls_out_b": 2},
        "joint": {"qtp__cls_out_w": (h, 1), "qtp__cls_out_b": 1},
    }
    for name, shape in heads.get(kind, {}).items():
        variables[name] = (0.5 * rng.standard_normal(shape)).astype(np.float32)
    return variables


def encoder_json(sizes: Sizes, types_key: str) -> dict[str, Any]:
    values = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": sizes.activation,
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        types_key: sizes.sentence_types,
        "vocab_size": sizes.vocab,
        "task_type_vocab_size": sizes.task_types or 16,  # without use_task_id it means nothing
    }
    return values | ({"use_task_id": True} if sizes.task_types else {})


@dataclass(frozen=True)
class Made:
    """A checkpoint of the toolkit, and what is in it."""

    kind: str
    path: Path
    sizes: Sizes
    variables: Mapping[str, np.ndarray]

    @property
    def params(self) -> Path:
        return self.path.parent / "some_params"

    @property
    def encoder(self) -> Path:
        return self.path.parent / "ernie.json"

    @property
    def own_prefixes(self) -> tuple[str, ...]:
        """Those of the encoders that compute the result."""
        return {"shared": ("titlepara_",), "joint": ("qtp_",)}.get(self.kind, KINDS[self.kind][1])

    @property
    def own(self) -> dict[str, np.ndarray]:
        """The variables that compute the result, and so are needed."""
        if self.kind == "classes":
            return dict(self.variables)
        return {name: array for name, array in self.variables.items() if name.startswith(self.own_prefixes)}

    def put(self, name: str, content: np.ndarray | bytes) -> Path:
        """Write a variable."""
        path = self.params / name
        path.write_bytes(content if isinstance(content, bytes) else lod_tensor(content))
        return path

    def change(self, path: Path | None = None, *, without: str = "", **values: Any) -> None:
        """Change the JSON or, given as `path`, another one."""
        path = path or self.path
        old = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({k: v for k, v in (old | values).items() if k != without}))


def make(
    folder: Path, kind: str, sizes: Sizes = TINY, types_key: str = "sent_type_vocab_size", **config: Any
) -> Made:
    """Write a checkpoint with random variables. `config` goes into its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Made(kind, folder / f"{kind}.json", sizes, variables_of(kind, sizes))
    paths = {
        "model_conf_path": "ernie.json",
        "model_vocab_path": "words.txt",
        "model_checkpoint_path": "some_params",
    }
    made.path.write_text(json.dumps(KINDS[kind][0] | paths | {"for_cn": False} | config))
    made.encoder.write_text(json.dumps(encoder_json(sizes, types_key)))
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    made.params.mkdir()
    for name, array in made.variables.items():
        made.put(name, array)
    return made


# What the reference computes --------------------------------------------------------------------

QUERIES = [
    "What is the moon ?",
    "稠密检索 为 什么 检 索 needs 负例",
    "Naïve CAFÉ: re-baked in 1999!",
    "",
    "a query that goes on and on until it is far longer than the tokens that its length allows it",
]
TITLES = [
    "moon",
    "",
    "稠密 检索 and honey",
    "",
    "the king and the castle and the bees and the wax of the old hive",
]
PARAS = [
    "The moon is a satellite of the earth; its tides follow its pull.",
    "检索 moon 稠密 , 检 。 and a sea",
    "",
    "baked in a hot oven , " * 12,
    "castling protects the king , windows let light through " * 3,
]


@dataclass(frozen=True)
class Oracle:
    """What the reference gives for the texts above."""

    made: Made
    for_cn: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads(self.made.path.read_text())

    def tokens(self, text: str) -> list[str]:
        return reference.word_pieces(text.replace(" ", "") if self.for_cn else text, WORDS)

    def ids(self, text: str) -> list[int]:
        return [WORDS[token] for token in self.tokens(text)]

    def _pair(self, first: list[int], second: list[int], length: int) -> Sequence2:
        first, second = reference.truncate(first, second, length - 3)
        ids = [CLS, *first, SEP, *second, SEP]
        return ids, [0] * (len(first) + 2) + [1] * (len(second) + 1)

    def packed_queries(self) -> list[Sequence2]:
        kept = [self.ids(text)[: self.config["q_max_seq_len"] - 2] for text in QUERIES]
        return [([CLS, *ids, SEP], [0] * (len(ids) + 2)) for ids in kept]

    def packed_passages(self) -> list[Sequence2]:
        length = self.config["p_max_seq_len"]
        return [
            self._pair(self.ids(title), self.ids(text), length)
            for title, text in zip(TITLES, PARAS, strict=True)
        ]

    def packed_pairs(self) -> list[Sequence2]:
        length, texts = self.config["max_seq_len"], zip(QUERIES, TITLES, PARAS, strict=True)
        return [self._pair(self.ids(q), self.ids(t) + self.ids(p), length) for q, t, p in texts]

    def _states(self, prefix: str, rows: list[Sequence2]) -> np.ndarray:
        made = self.made
        return np.stack([reference.ernie(made.variables, made.sizes, row, prefix)[0] for row in rows])

    def queries(self) -> np.ndarray:
        return self._states(self.made.own_prefixes[0], self.packed_queries())

    def passages(self) -> np.ndarray:
        return self._states("titlepara_", self.packed_passages())

    def matching(self) -> np.ndarray:
        if self.made.kind in ("dual", "shared"):
            return (self.queries() * self.passages()).sum(axis=-1)
        states = self._states(self.made.own_prefixes[0], self.packed_pairs())
        if self.made.kind == "joint":
            return np.array([reference.joint_logit(self.made.variables, state) for state in states])
        return reference.softmax(reference.classes_logits(self.made.variables, states))[:, 1]


def assert_close(given: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4, err_msg=what)


def assert_numbers(model: DualModel | CrossModel, oracle: Oracle) -> None:
    """Everything that the model computes is what the reference computes."""
    assert isinstance(model, DualModel if oracle.made.kind in ("dual", "shared") else CrossModel)
    if isinstance(model, DualModel):
        assert_close(model.encode_query(QUERIES), oracle.queries(), "queries")
        assert_close(model.encode_para(PARAS, TITLES), oracle.passages(), "passages")
    assert_close(model.matching(QUERIES, PARAS, TITLES), oracle.matching(), "matching")


@pytest.mark.parametrize("for_cn", [False, True], ids=["", "cn"])
@every_kind
@pytest.mark.parametrize("sizes, types_key", NETWORKS)
def test_the_numbers_are_the_references(
    tmp_path: Path, sizes: Sizes, types_key: str, kind: str, for_cn: bool
) -> None:
    made = make(tmp_path, kind, sizes, types_key, for_cn=for_cn)
    for batch_size in (1, 5):
        assert_numbers(load_model(str(made.path), batch_size=batch_size), Oracle(made, for_cn))


@pytest.mark.parametrize("for_cn", [False, True], ids=["", "cn"])
def test_the_tokens_are_the_references(tmp_path: Path, for_cn: bool) -> None:
    (dual, cross) = (make(tmp_path / kind, kind, for_cn=for_cn) for kind in ("dual", "joint"))
    oracle, checkpoint = Oracle(dual, for_cn), convert.read(dual.path)
    tokenizer, lengths = checkpoint.tokenizer, checkpoint.lengths
    for text in (*QUERIES, *TITLES, *PARAS):
        assert tokenizer.tokenize(text) == oracle.tokens(text)
    assert tokenizer.pack_queries(QUERIES, lengths["query"]) == oracle.packed_queries()
    assert tokenizer.pack_passages(TITLES, PARAS, lengths["passage"]) == oracle.packed_passages()
    pairs = convert.read(cross.path).tokenizer.pack_pairs(QUERIES, TITLES, PARAS, 33)
    assert pairs == Oracle(cross, for_cn).packed_pairs()


def test_the_texts_of_these_tests_are_hard_enough(tmp_path: Path) -> None:
    plain, chinese = (Oracle(make(tmp_path / str(cn), "dual"), for_cn=cn) for cn in (False, True))
    for oracle in (plain, chinese):
        for rows, length in ((oracle.packed_queries(), 12), (oracle.packed_passages(), 26)):
            sizes = [len(ids) for ids, _ in rows]
            assert max(sizes) == length > min(sizes)
        assert len(oracle.ids(QUERIES[4])) > 10 and len(oracle.ids(TITLES[4] + PARAS[4])) > 23
        assert len(oracle.ids(TITLES[4])) > 11
    assert "稠" in plain.tokens(QUERIES[1]) and "[UNK]" in plain.tokens(QUERIES[1])
    assert plain.tokens(QUERIES[0]) != chinese.tokens(QUERIES[0])


def test_probabilities_are_neither_zero_nor_one(tmp_path: Path) -> None:
    for sizes, _ in (network.values for network in NETWORKS):
        scores = Oracle(make(tmp_path / str(sizes.hidden), "classes", sizes)).matching()
        assert np.ptp(scores) > 0.01 and scores.min() > 0.001 and scores.max() < 0.999


def test_a_passage_without_titles_is_one_with_empty_titles(tmp_path: Path) -> None:
    made = make(tmp_path, "dual")
    oracle, model = Oracle(made), load_model(made.path, batch_size=3)
    rows = [oracle._pair([], oracle.ids(text), 26) for text in PARAS]
    expected = oracle._states("titlepara_", rows)
    assert_close(model.encode_para(PARAS), expected)
    assert_close(model.matching(QUERIES, PARAS), (oracle.queries() * expected).sum(axis=-1))


def test_one_shared_tower_is_the_passages_with_or_without_the_querys_variables(tmp_path: Path) -> None:
    made = make(tmp_path, "shared")
    with_both = load_model(made.path)
    assert with_both.checkpoint.network.shared
    for name in made.variables.keys() - made.own.keys():
        (made.params / name).unlink()
    assert {name.partition("_")[0] for name in contents(made.params)} == {"titlepara"}
    alone = load_model(made.path)
    assert_numbers(alone, Oracle(made))
    np.testing.assert_array_equal(alone.encode_query(QUERIES), with_both.encode_query(QUERIES))


def test_a_joint_folder_gives_both_its_networks(tmp_path: Path) -> None:
    made = make(tmp_path, "joint")
    assert_numbers(load_model(made.path), Oracle(made))
    for kind in ("dual", "shared"):
        paths = {key: value for key, value in Oracle(made).config.items() if key.endswith("_path")}
        (tmp_path / f"{kind}.json").write_text(json.dumps(KINDS[kind][0] | paths))
        other = replace(made, kind=kind, path=tmp_path / f"{kind}.json")
        assert_numbers(load_model(other.path), Oracle(other))


@every_kind
def test_what_training_keeps_beside_the_variables_is_passed_over(tmp_path: Path, kind: str) -> None:
    made = make(tmp_path, kind)
    digest = convert.read(made.path).digest()
    for name, array in made.variables.items():
        for ending in ("moment1_0", "moment2_0"):
            made.put(f"{name}_{ending}", array + 1)
        for ending in ("beta1_pow_acc_0", "beta2_pow_acc_0"):
            made.put(f"{name}_{ending}", np.ones(1, np.float32))
    made.put("@LR_DECAY_COUNTER@", np.ones(1, np.int64))
    for name in ("learning_rate_0", "scheduled_learning_rate", "loss_scaling_0"):
        made.put(name, np.ones(1, np.float32))
    for name in ("num_bad_steps_0", "num_good_steps_0"):
        made.put(name, np.ones(1, np.int32))
    made.put(".DS_Store", b"\0")
    assert convert.read(made.path).digest() == digest


@pytest.mark.parametrize("kind", ["dual", "shared", "joint"])
def test_heads_of_ernie_that_the_network_lacks_are_passed_over(tmp_path: Path, kind: str) -> None:
    made, h = make(tmp_path, kind), TINY.hidden
    digest = convert.read(made.path).digest()
    for name, shape in {
        "pooled_fc.w_0": (h, h),
        "pooled_fc.b_0": (h,),
        "next_sent_fc.w_0": (h, 2),
        "mask_lm_out_fc.b_0": (V,),
        "titlepara_task_embedding": (16, h),
    }.items():
        made.put(name, np.ones(shape, np.float32))
    assert convert.read(made.path).digest() == digest


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@every_kind
def test_variables_of_other_floating_point_types_are_read(tmp_path: Path, kind: str, dtype: str) -> None:
    made = make(tmp_path, kind)
    rounded = {name: array.astype(dtype) for name, array in made.variables.items()}
    for name, array in rounded.items():
        made.put(name, array)
    assert_numbers(load_model(made.path), Oracle(replace(made, variables=rounded)))


def test_a_vocabulary_with_ids_is_read_by_its_ids(tmp_path: Path) -> None:
    made = make(tmp_path, "joint")
    lines = [f"{token}\t{i}\n" for i, token in enumerate(WORDS)]
    (tmp_path / "words.txt").write_text("".join(reversed(lines)), encoding="utf-8")
    assert_numbers(load_model(made.path), Oracle(made))


def test_switches_may_be_left_out(tmp_path: Path) -> None:
    for kind in KINDS:
        made = make(tmp_path / kind, kind)
        for key in ("for_cn", "share_parameter", "joint_training"):
            if not Oracle(made).config.get(key):
                made.change(without=key)
        assert_numbers(load_model(made.path), Oracle(made))


def test_switches_may_be_booleans(tmp_path: Path) -> None:
    for kind, changes in {
        "shared": {"share_parameter": True},
        "dual": {"share_parameter": False},
        "joint": {"joint_training": True},
        "classes": {"joint_training": False},
    }.items():
        made = make(tmp_path / kind, kind, **changes)
        assert_numbers(load_model(made.path), Oracle(made))


def test_keys_that_say_nothing_here_are_passed_over(tmp_path: Path) -> None:
    made = make(tmp_path, "dual", comment="ours", max_seq_len=7)
    made.change(made.encoder, use_task_id=False, epsilon=3)
    assert_numbers(load_model(made.path), Oracle(made))


def test_of_the_two_keys_for_sentence_types_the_toolkits_own_counts(tmp_path: Path) -> None:
    made = make(tmp_path, "joint")
    made.change(made.encoder, type_vocab_size=9)
    assert_numbers(load_model(made.path), Oracle(made))
    made.change(made.encoder, type_vocab_size=TINY.sentence_types, sent_type_vocab_size=0)
    assert_numbers(load_model(made.path), Oracle(made))


def test_the_same_call_as_the_toolkits_works(tmp_path: Path) -> None:
    made = make(tmp_path, "classes")
    model = rocketqa_paddle.load_model(model=str(made.path), use_cuda=False, device_id=0, batch_size=16)
    scores = list(model.matching(query=QUERIES, para=PARAS, title=TITLES))
    assert_close(np.array(scores), Oracle(made).matching())


SAMPLE = Path(__file__).parents[3] / "shared" / "parity" / "sample"


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no sample in {SAMPLE}")
@pytest.mark.parametrize("name", ["de0", "de0_cn", "de1", "de1_cn", "ce", "ce_cn", "cej", "cej_cn"])
def test_the_references_own_sample(name: str) -> None:
    texts = json.loads((SAMPLE / "texts.json").read_text(encoding="utf-8"))
    expected = np.load(SAMPLE / "expected.npz")
    model = load_model(SAMPLE / f"{name}.json", batch_size=3)
    scores = model.matching(texts["query"], texts["para"], texts["title"])
    if isinstance(model, DualModel):
        assert_close(model.encode_query(texts["query"]), expected[f"{name}_q"])
        assert_close(model.encode_para(texts["para"], texts["title"]), expected[f"{name}_p"])
        assert_close(scores, expected[f"{name}_match"])
    else:
        assert_close(scores, expected[name])


# Where its files are ----------------------------------------------------------------------------


def test_paths_are_relative_to_the_json_and_not_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "models" / "one", "dual")
    decoy = make(tmp_path / "models" / "two", "dual")
    decoy.put("query_pre_encoder_layer_norm_bias", np.zeros(TINY.hidden, np.float32))
    oracle = Oracle(made)
    for folder, path in (
        (tmp_path, "models/one/dual.json"),
        (made.path.parent, "dual.json"),
        (made.path.parent, "./dual.json"),
        (decoy.path.parent, "../one/dual.json"),
        (decoy.path.parent, str(made.path)),
    ):
        monkeypatch.chdir(folder)
        assert_numbers(load_model(path), oracle)
        assert_numbers(load_model(Path(path)), oracle)
    checkpoint = toolkit.read("../one/dual.json")
    assert checkpoint.digest() == convert.read(made.path).digest() != convert.read(decoy.path).digest()


def test_paths_may_lead_elsewhere_or_be_absolute(tmp_path: Path) -> None:
    made = make(tmp_path / "files", "joint")
    (tmp_path / "configs").mkdir()
    moved = made.path.rename(tmp_path / "configs" / "joint.json")
    other = replace(made, path=moved)
    other.change(
        model_conf_path="../files/ernie.json",
        model_vocab_path=str(tmp_path / "files" / "words.txt"),
        model_checkpoint_path="../files/some_params/",
    )
    assert_numbers(load_model(moved), Oracle(other))


def test_a_linked_json_is_where_its_link_is(tmp_path: Path) -> None:
    made = make(tmp_path / "snapshot", "classes")
    blob = tmp_path / "0a1b2c"  # so keep caches such as Hugging Face's their files
    made.path.rename(blob)
    made.path.symlink_to(blob)
    assert_numbers(load_model(made.path), Oracle(made))


@pytest.mark.parametrize(
    "key, kind",
    [("model_conf_path", "file"), ("model_vocab_path", "file"), ("model_checkpoint_path", "folder")],
)
def test_a_file_that_is_not_there_is_told_with_its_key(tmp_path: Path, key: str, kind: str) -> None:
    made = make(tmp_path, "dual")
    wrong_kind = "some_params" if kind == "file" else "words.txt"
    for value in ("gone/away", wrong_kind):
        made.change(**{key: value})
        with pytest.raises(
            FileNotFoundError, match=f"{key} is '{value}', but there is no such {kind}"
        ) as error:
            load_model(made.path)
        assert str(made.path) in str(error.value)


# Variables that do not fit ----------------------------------------------------------------------


@every_kind
def test_every_variable_that_a_network_needs_is_missed_by_name(tmp_path: Path, kind: str) -> None:
    made = make(tmp_path, kind, NETWORKS[1].values[0])
    for name in made.own:
        (made.params / name).unlink()
    with pytest.raises(ValueError, match="do not fit the network") as error:
        load_model(made.path)
    expected = {f"  missing {name} {list(array.shape)}" for name, array in made.own.items()}
    assert set(str(error.value).split("\n")[1:]) == expected
    assert len(expected) > 20


@every_kind
def test_missing_extra_and_misshapen_variables_are_all_named_in_one_error(tmp_path: Path, kind: str) -> None:
    made, h = make(tmp_path, kind), TINY.hidden
    prefix = made.own_prefixes[-1]
    for name in ("word_embedding", "encoder_layer_0_post_ffn_layer_norm_scale"):
        (made.params / f"{prefix}{name}").unlink()
    for name, shape in {
        "surprise": (3, 2),
        f"{prefix}encoder_layer_0_ffn_fc_2.w_0": (h, h),
        f"{prefix}word_embedding_moment": (h,),
        f"{prefix}moment3_0": (1,),
        "learning_rate": (1,),
    }.items():
        made.put(name, np.zeros(shape, np.float32))
    for name, shape in {
        "pos_embedding": (41, h),
        "sent_embedding": (h, 2),
        "encoder_layer_0_ffn_fc_0.w_0": (4 * h, h),
        "encoder_layer_0_ffn_fc_1.b_0": (1, h),
        "pre_encoder_layer_norm_bias": (h, 1),
    }.items():
        made.put(f"{prefix}{name}", np.zeros(shape, np.float32))
    with pytest.raises(ValueError) as error:
        load_model(made.path)
    first, *lines = str(error.value).split("\n")
    assert str(made.params) in first
    assert {line.strip() for line in lines} == {
        f"missing {prefix}word_embedding [{V}, {h}]",
        f"missing {prefix}encoder_layer_0_post_ffn_layer_norm_scale [{h}]",
        "left over surprise [3, 2]",
        f"left over {prefix}encoder_layer_0_ffn_fc_2.w_0 [{h}, {h}]",
        f"left over {prefix}word_embedding_moment [{h}]",
        f"left over {prefix}moment3_0 [1]",
        "left over learning_rate [1]",
        f"{prefix}pos_embedding is [41, {h}], expected [40, {h}]",
        f"{prefix}sent_embedding is [{h}, 2], expected [2, {h}]",
        f"{prefix}encoder_layer_0_ffn_fc_0.w_0 is [{4 * h}, {h}], expected [{h}, {4 * h}]",
        f"{prefix}encoder_layer_0_ffn_fc_1.b_0 is [1, {h}], expected [{h}]",
        f"{prefix}pre_encoder_layer_norm_bias is [{h}, 1], expected [{h}]",
    }


@pytest.mark.parametrize("content", [b"notes", b"", np.zeros(3, np.int64)], ids=["text", "empty", "integers"])
def test_an_extra_file_that_is_no_variable_of_numbers_is_named_with_the_others(
    tmp_path: Path, content: bytes | np.ndarray
) -> None:
    made = make(tmp_path, "dual")
    made.put("a_counter", content)
    (made.params / "query_word_embedding").unlink()
    made.put("titlepara_pos_embedding", np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError) as error:
        load_model(made.path)
    for name in ("a_counter", "query_word_embedding", "titlepara_pos_embedding"):
        assert name in str(error.value)


@every_kind
def test_a_layer_more_than_the_sizes_say_is_an_error(tmp_path: Path, kind: str) -> None:
    made = make(tmp_path, kind, replace(TINY, layers=2))
    made.change(made.encoder, num_hidden_layers=1)
    with pytest.raises(ValueError, match="do not fit the network") as error:
        load_model(made.path)
    found = {line.split()[2] for line in str(error.value).split("\n")[1:] if "left over" in line}
    assert found >= {name for name in made.own if "encoder_layer_1_" in name}
    assert found <= {name for name in made.variables if "encoder_layer_1_" in name}


@every_kind
def test_a_layer_less_than_the_sizes_say_is_an_error(tmp_path: Path, kind: str) -> None:
    made = make(tmp_path, kind)
    made.change(made.encoder, num_hidden_layers=2)
    prefix = made.own_prefixes[0]
    with pytest.raises(ValueError, match=rf"missing {prefix}encoder_layer_1_ffn_fc_0\.w_0 \[8, 32\]"):
        load_model(made.path)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"share_parameter": 0, "model_type": "dual_encoder"}, "missing query_word_embedding"),
        ({"model_type": "cross_encoder", "joint_training": 1}, "missing qtp__cls_out_w"),
        ({"model_type": "cross_encoder", "joint_training": 0}, "missing pooled_fc.w_0"),
    ],
)
def test_a_json_of_another_kind_than_the_folder_is_an_error(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    made = make(tmp_path, "shared", max_seq_len=20)
    for name in made.variables.keys() - made.own.keys():
        (made.params / name).unlink()
    made.change(**changes)
    with pytest.raises(ValueError, match=problem):
        load_model(made.path)


def test_a_task_embedding_that_the_sizes_promise_is_missed(tmp_path: Path) -> None:
    made = make(tmp_path, "joint")
    made.change(made.encoder, use_task_id=True)
    with pytest.raises(ValueError, match=r"missing qtp_task_embedding \[16, 8\]"):
        load_model(made.path)


def test_loading_changes_no_file(tmp_path: Path) -> None:
    made = make(tmp_path, "joint")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    load_model(made.path).matching(QUERIES, PARAS)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# A JSON that is wrong ---------------------------------------------------------------------------

NEEDED = {
    "dual": ("q_max_seq_len", "p_max_seq_len"),
    "classes": ("max_seq_len",),
}
PATHS = ("model_conf_path", "model_vocab_path", "model_checkpoint_path")


@pytest.mark.parametrize(
    "kind, key", [(kind, key) for kind, keys in NEEDED.items() for key in (*keys, *PATHS)]
)
def test_a_missing_key_is_named(tmp_path: Path, kind: str, key: str) -> None:
    made = make(tmp_path, kind)
    made.change(without=key)
    with pytest.raises(ValueError, match=rf"{kind}\.json: .*{key}"):
        load_model(made.path)


ENCODER_KEYS = (
    "hidden_act",
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


@pytest.mark.parametrize("key", [*ENCODER_KEYS, "type_vocab_size", "task_type_vocab_size"])
def test_a_missing_size_is_named(tmp_path: Path, key: str) -> None:
    made = make(tmp_path, "dual", replace(TINY, task_types=3), "type_vocab_size")
    made.change(made.encoder, without=key)
    with pytest.raises(ValueError, match=rf"ernie\.json: no '{key}'"):
        load_model(made.path)


@pytest.mark.parametrize("value", ["dual", "Dual_Encoder", "bert", "", None, 1, ["dual_encoder"]], ids=repr)
def test_another_model_type_is_refused(tmp_path: Path, value: object) -> None:
    made = make(tmp_path, "dual", model_type=value)
    with pytest.raises(
        ValueError, match=r"dual\.json: model_type .*expected 'dual_encoder' or 'cross_encoder'"
    ):
        load_model(made.path)


def test_the_lengths_tell_the_kind_where_model_type_is_left_out(tmp_path: Path) -> None:
    for kind in KINDS:
        made = make(tmp_path / kind, kind)
        made.change(without="model_type")
        assert_numbers(load_model(made.path), Oracle(made))


@pytest.mark.parametrize("value", ["0", "false", 2, None, []], ids=repr)
@pytest.mark.parametrize("key", ["for_cn", "share_parameter", "joint_training"])
def test_a_switch_is_true_or_false(tmp_path: Path, key: str, value: object) -> None:
    made = make(tmp_path, "joint" if key == "joint_training" else "dual", **{key: value})
    with pytest.raises(ValueError, match=rf"\.json: {key} .*, expected true, false, 0 or 1"):
        load_model(made.path)


def test_the_kind_that_is_asked_for_is_checked(tmp_path: Path) -> None:
    made = make(tmp_path, "dual")
    assert convert.read(made.path, kind="dual_encoder").kind == "dual_encoder"
    with pytest.raises(ValueError, match="dual.json is a dual_encoder, expected a cross_encoder"):
        convert.read(made.path, kind="cross_encoder")


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model_type": "dual_encoder",}', "not JSON"),
        ("模".encode("gb18030"), "not JSON"),
        (b"[1]", "expected a JSON object, found a list"),
        (b'"dual_encoder"', "expected a JSON object, found a str"),
        (b"null", "expected a JSON object, found a NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    made = make(tmp_path, "dual")
    for path in (made.encoder, made.path):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}: {problem}"):
            load_model(made.path)


@pytest.mark.parametrize(
    "kind, changes, problem",
    [
        ("dual", {"q_max_seq_len": 41}, "query length 41, but the encoder has only 40 positions"),
        ("shared", {"p_max_seq_len": 512}, "passage length 512, but the encoder has only 40 positions"),
        ("joint", {"max_seq_len": 41}, "pair length 41, but the encoder has only 40 positions"),
    ],
)
def test_a_length_beyond_the_positions_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, int], problem: str
) -> None:
    made = make(tmp_path, kind, **changes)
    with pytest.raises(ValueError, match=problem):
        load_model(made.path)
    made.change(**dict.fromkeys(changes, 40))
    load_model(made.path)


@pytest.mark.parametrize("value", ["12", None, 0, -3], ids=repr)
@pytest.mark.parametrize("kind, key", [("dual", "q_max_seq_len"), ("joint", "max_seq_len")])
def test_a_wrong_length_is_refused_with_its_key(tmp_path: Path, kind: str, key: str, value: object) -> None:
    made = make(tmp_path, kind, **{key: value})
    with pytest.raises(ValueError, match=key):
        load_model(made.path)


@pytest.mark.parametrize("value", [None, 3], ids=repr)
@pytest.mark.parametrize("key", PATHS)
def test_a_wrong_path_is_refused_with_its_key(tmp_path: Path, key: str, value: object) -> None:
    made = make(tmp_path, "dual", **{key: value})
    with pytest.raises(ValueError, match=key):
        load_model(made.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "8"},
        {"num_hidden_layers": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"vocab_size": -1},
        {"max_position_embeddings": 40.5},
        {"hidden_act": "swish"},
        {"hidden_act": ["relu"]},
    ],
    ids=repr,
)
def test_a_wrong_size_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    made = make(tmp_path, "dual")
    made.change(made.encoder, **changes)
    with pytest.raises(ValueError):
        load_model(made.path)


def test_a_vocabulary_larger_than_the_encoder_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "joint", replace(TINY, vocab=V - 5))
    with pytest.raises(ValueError, match=f"words.txt: {V} tokens, but the encoder has {V - 5}"):
        load_model(made.path)


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "joint")
    (tmp_path / "words.txt").write_text("\n".join([*WORDS][5:]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.txt: the vocabulary has no \[PAD\]"):
        load_model(made.path)


# One variable's file ----------------------------------------------------------------------------


def floats(shapes: st.SearchStrategy[tuple[int, ...]], *dtypes: str) -> st.SearchStrategy[np.ndarray]:
    numbers = {"allow_nan": False, "allow_infinity": False}
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: arrays_of.arrays(
            dtype, shapes, elements=st.floats(width={"float16": 16}.get(dtype, 32), **numbers)
        )
    )


SHAPES = arrays_of.array_shapes(max_dims=4, max_side=200).filter(lambda shape: np.prod(shape) < 5000)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variable") / "some_fc.w_0"


@given(
    array=floats(SHAPES, "float16", "float32", "float64"),
    levels=st.lists(st.binary(max_size=40), max_size=3),
    packed=st.booleans(),
)
def test_any_variable_is_read(file: Path, array: np.ndarray, levels: list[bytes], packed: bool) -> None:
    file.write_bytes(lod_tensor(array, levels, packed))
    found = read_variable(file)
    assert found.dtype == np.float32 and found.shape == array.shape
    np.testing.assert_array_equal(found, array.astype(np.float32))


@given(array=floats(SHAPES, "float32"), transposed=st.booleans())
def test_any_variable_is_written_as_the_toolkit_does(file: Path, array: np.ndarray, transposed: bool) -> None:
    array = array.T if transposed else array
    write_variable(file, array)
    assert file.read_bytes() == lod_tensor(np.ascontiguousarray(array))
    found = paddle.load(str(file)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(read_variable(file), array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (130,), (3, 5), (300, 2), (2, 3, 4)], ids=str)
def test_what_paddle_writes_is_read(file: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    paddle.save(paddle.to_tensor(array), str(file), use_binary_format=True)
    assert file.read_bytes() == lod_tensor(array)  # and so the writer of these tests is right
    np.testing.assert_array_equal(read_variable(file), array.astype(np.float32))


def test_special_numbers_come_back(file: Path) -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4028235e38], np.float32)
    write_variable(file, array)
    assert read_variable(file).tobytes() == array.tobytes()


def refused(file: Path) -> AbstractContextManager:
    return pytest.raises(ValueError, match=rf"{file.name}: not a whole LoDTensor")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("levels", [(), (b"\0" * 16, b"\1" * 8)], ids=["", "levels"])
def test_a_file_cut_off_anywhere_is_refused(file: Path, levels: tuple[bytes, ...], packed: bool) -> None:
    whole = lod_tensor(np.arange(6, dtype=np.float32).reshape(2, 3), levels, packed)
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with refused(file):
            read_variable(file)
    file.write_bytes(whole + b"\0")
    with refused(file):
        read_variable(file)
    file.write_bytes(whole)
    assert read_variable(file).shape == (2, 3)


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "uint8"])
def test_variables_that_are_no_floating_point_numbers_are_refused(
    tmp_path: Path, file: Path, dtype: str
) -> None:
    paddle.save(paddle.ones([2, 3]).astype(dtype), str(file), use_binary_format=True)
    assert file.read_bytes() == lod_tensor(np.ones((2, 3), dtype))
    with refused(file):
        read_variable(file)
    made = make(tmp_path, "dual")
    path = made.put("query_pre_encoder_layer_norm_bias", np.zeros(TINY.hidden, dtype))
    with refused(path):
        load_model(made.path)


HEAD = struct.pack("<IQ", 0, 0)
BROKEN = {
    "a later version": struct.pack("<IQIi", 1, 0, 0, 4) + b"\x08\x05\x10\x01" + b"\0" * 4,
    "a later version of the tensor": struct.pack("<IQIi", 0, 0, 1, 4) + b"\x08\x05\x10\x01" + b"\0" * 4,
    "a negative description": struct.pack("<IQIi", 0, 0, 0, -4) + b"\x08\x05\x10\x01" + b"\0" * 4,
    "a huge description": HEAD + struct.pack("<Ii", 0, 2**31 - 1) + b"\x08\x05",
    "no end of levels": struct.pack("<IQ", 0, 2**64 - 1) + b"\0" * 4000,
    "a huge level": struct.pack("<IQQ", 0, 1, 2**64 - 1) + b"\0" * 40,
    "no data type": framed(b"\x10\x01", b"\0" * 4),
    "an unknown data type": framed(described(77, [1]), b"\0" * 4),
    "a huge shape": framed(described(5, [2**40, 2**40]), b"\0" * 40),
    "a large shape": framed(described(5, [2**31]), b"\0" * 40),
    "a negative shape": framed(described(5, [2**64 - 1]), b"\0" * 4),
    "two negative sizes": framed(described(5, [2**64 - 1, 2**64 - 1]), b"\0" * 4),
    "nothing of huge size": framed(described(5, [0, 2**64 - 1]), b""),
    "a hundred dimensions": framed(described(5, [1] * 100), b"\0" * 4),
    "an unknown field": framed(described(5, [1]) + b"\x18\x01", b"\0" * 4),
    "a size that does not end": framed(b"\x08\x05\x10\x81", b"\0" * 4),
    "a packed shape longer than itself": framed(b"\x08\x05\x12\x7f\x01", b"\0" * 4),
    "text": b"a passage\twith a tab\n" * 20,
    "an array of NumPy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }\n",
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_takes_no_memory(file: Path, name: str) -> None:
    file.write_bytes(BROKEN[name])
    tracemalloc.start()
    try:
        with refused(file):
            read_variable(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "description",
    [b"\x08" + b"\xff" * 280_000, b"\x08\x05" + (b"\x10" + varint(2**63 - 1)) * 26_000],
    ids=["one number without end", "sizes without end"],
)
def test_a_long_broken_description_takes_no_time(file: Path, description: bytes) -> None:
    file.write_bytes(framed(description, b""))
    start = time.process_time()
    with refused(file):
        read_variable(file)
    assert time.process_time() - start < 0.3


@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_with_the_files_name(file: Path, content: bytes) -> None:
    for data in (content, HEAD + content, HEAD + struct.pack("<Ii", 0, len(content)) + content):
        file.write_bytes(data)
        try:
            assert read_variable(file).nbytes <= 2 * len(data)
        except ValueError as error:
            assert str(error).startswith(f"{file}: ")


@given(index=st.integers(0, 200), byte=st.integers(0, 255), size=st.integers(1, 200), packed=st.booleans())
def test_a_damaged_byte_is_refused_or_changes_numbers(
    file: Path, index: int, byte: int, size: int, packed: bool
) -> None:
    data = bytearray(lod_tensor(np.ones((2, size), np.float32), [b"\0" * 8], packed))
    data[index % len(data)] = byte
    file.write_bytes(data)
    try:
        assert read_variable(file).nbytes <= 2 * len(data)
    except ValueError as error:
        assert str(error).startswith(f"{file}: ")


def test_a_cut_off_variable_is_named_by_the_model(tmp_path: Path) -> None:
    made = make(tmp_path, "classes")
    path = made.params / "_cls_out_w"
    for content in (b"", path.read_bytes()[:-1], b"garbage"):
        path.write_bytes(content)
        with refused(path):
            load_model(made.path)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("name", ["query_pos_embedding", "extra", "query_pos_embedding_moment1_0"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_never_executed(tmp_path: Path, name: str, protocol: int) -> None:
    marker, made = tmp_path / "executed", make(tmp_path / "model", "dual")
    content = pickle.dumps(Payload(marker), protocol)
    pickle.loads(content)
    assert marker.exists()  # it would have been
    marker.unlink()
    path = made.put(name, content)
    if name.endswith("_moment1_0"):
        load_model(made.path)
    else:
        with pytest.raises(ValueError, match=name):
            load_model(made.path)
        with refused(path):
            read_variable(path)
    assert not marker.exists()


def test_a_tensor_that_paddle_pickled_is_refused_and_nothing_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, "dual")
    digest, path = convert.read(made.path).digest(), made.params / "query_pos_embedding"
    whole = path.read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    paddle.save(paddle.to_tensor(made.variables[path.name]), str(path))
    for module in ("pickle.load", "pickle.loads", "pickle.Unpickler", "paddle.load", "numpy.load"):
        monkeypatch.setattr(module, refuse)
    with refused(path):
        load_model(made.path)
    path.write_bytes(whole)
    assert convert.read(made.path).digest() == digest


# Finding ----------------------------------------------------------------------------------------


@pytest.fixture
def without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without PaddleNLP."""
    monkeypatch.setattr(convert.paddlenlp, "names", frozenset)


def some_checkpoint(vocab: Path, sizes: ErnieConfig | None = None, **network: Any) -> Checkpoint:
    sizes = sizes or ErnieConfig(V, 16, 1, 2, 64, 40, 2, initializer_range=0.3)
    made = DualEncoder(sizes, **network)
    made.eval()
    return Checkpoint(made, Tokenizer(vocab), {"query": 12, "passage": 26})


def test_a_json_and_a_folder_with_config_json_are_found(tmp_path: Path) -> None:
    made = make(tmp_path / "one", "dual")
    assert convert.find(made.path) == ("reference", made.path)
    with pytest.raises(FileNotFoundError, match=rf"one holds .*: give one of {made.path.name}"):
        convert.find(tmp_path / "one")
    config = made.path.rename(tmp_path / "one" / "config.json")
    for source in (tmp_path / "one", config, str(tmp_path / "one")):
        assert convert.find(source) == ("reference", config), source
    with pytest.raises(ValueError, match="ernie.json: not the JSON of a toolkit's model"):
        convert.find(made.encoder)
    assert_numbers(load_model(tmp_path / "one"), Oracle(replace(made, path=config)))


def test_formats_are_told_apart_by_what_the_folder_holds(tmp_path: Path, vocab: Path) -> None:
    one_tower, two_towers = (some_checkpoint(vocab, shared=shared) for shared in (True, False))
    for name in ("native", "reference", "paddlenlp", "huggingface"):
        for checkpoint in (one_tower, two_towers):
            folder = tmp_path / f"{name}-{checkpoint.network.shared}"
            convert.write(checkpoint, folder, to=name)
            assert convert.find(folder).format == name
            again = convert.read(folder)
            assert again.digest() == checkpoint.digest()
            assert again.network.shared == checkpoint.network.shared


def test_the_config_of_a_checkpoint_folder_finds_the_folder(tmp_path: Path, vocab: Path) -> None:
    checkpoint = some_checkpoint(vocab)
    convert.write(checkpoint, tmp_path / "native", to="native")
    found = convert.find(tmp_path / "native" / "config.json")
    assert found == ("native", tmp_path / "native")
    assert convert.read_found(found).digest() == checkpoint.digest()


def test_a_json_may_name_a_checkpoint_folder_of_this_project(tmp_path: Path, vocab: Path) -> None:
    checkpoint = some_checkpoint(vocab, pooling="mean", normalize=True)
    convert.write(checkpoint, tmp_path / "step_7", to="native")
    (tmp_path / "config.json").write_text('{"model_checkpoint_path": "step_7"}')
    for source in (tmp_path, tmp_path / "config.json"):
        again = convert.read(source)
        assert again.digest() == checkpoint.digest() and again.network.pooling == "mean"


def test_a_published_name_is_preferred_to_a_folder_and_says_the_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name, kind in {"v1_marco_de": "dual", "v2_marco_ce": "joint"}.items():
        made = make(tmp_path / "cache" / name, kind)
        config = made.path.rename(made.path.with_name("config.json"))
        made = replace(made, path=config)
        made.change(without="model_type")
        decoy = make(tmp_path / "work" / name, kind)
        shutil.rmtree(decoy.params)
        monkeypatch.chdir(tmp_path / "work")
        monkeypatch.setattr(published, "fetch", lambda name: asked.append(name) or tmp_path / "cache" / name)

        assert convert.find(name) == ("reference", config)
        assert_numbers(load_model(name, batch_size=2), Oracle(made))
        assert asked and set(asked) == {name}
        asked.clear()
        with pytest.raises(FileNotFoundError, match="work/v._marco_.e holds several models"):
            convert.find(f"./{name}")
        assert not asked


@pytest.mark.usefixtures("without_names")
def test_where_nothing_is_the_error_tells_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'v1_marco_d': no such file.*did you mean v1_marco_de?"):
        convert.find("v1_marco_d")
    with pytest.raises(FileNotFoundError, match="gone.json': no such file or folder") as error:
        convert.find(tmp_path / "gone.json")
    assert "did you mean" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no model there"):
        convert.find(tmp_path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "dual")
    for path in (tmp_path / "words.txt", made.params / "query_word_embedding"):
        with pytest.raises(ValueError, match=f"{path.name} is a file, expected the JSON"):
            load_model(path)


def test_a_folder_in_an_installed_package_may_hold_a_toolkits_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "site" / "made_models" / "en", "shared")
    config = made.path.rename(made.path.with_name("config.json"))
    (tmp_path / "site" / "made_models" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert_numbers(load_model("package:made_models/en"), Oracle(replace(made, path=config)))


# Writing ----------------------------------------------------------------------------------------


def outputs(checkpoint: Checkpoint) -> np.ndarray:
    if checkpoint.kind == "cross_encoder":
        return CrossModel(checkpoint, 3).matching(QUERIES, PARAS, TITLES)
    model = DualModel(checkpoint, 3)
    return np.stack([model.encode_query(QUERIES), model.encode_para(PARAS, TITLES)])


@pytest.mark.parametrize("for_cn", [False, True], ids=["", "cn"])
@every_kind
@pytest.mark.parametrize("sizes, types_key", NETWORKS)
def test_what_is_written_reads_back_to_the_same_model(
    tmp_path: Path, sizes: Sizes, types_key: str, kind: str, for_cn: bool
) -> None:
    made = make(tmp_path / "made", kind, sizes, types_key, for_cn=for_cn)
    checkpoint = convert.read(made.path)
    convert.write(checkpoint, tmp_path / "written", to="reference")
    paddle.seed(77)
    again = convert.read(tmp_path / "written")

    assert convert.find(tmp_path / "written").format == "reference"
    assert again.digest() == checkpoint.digest()
    assert again.lengths == checkpoint.lengths
    assert again.network.config == checkpoint.network.config
    assert describe(again.network) == describe(checkpoint.network)
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    assert again.tokenizer.vocabulary == checkpoint.tokenizer.vocabulary
    assert not again.network.training
    np.testing.assert_array_equal(outputs(again), outputs(checkpoint))


@every_kind
def test_what_is_written_is_what_the_toolkit_reads(tmp_path: Path, kind: str) -> None:
    made = make(tmp_path / "made", kind, NETWORKS[3].values[0], for_cn=True)
    convert.write(convert.read(made.path), tmp_path / "written", to="reference")

    given = json.loads((tmp_path / "written" / "config.json").read_text(encoding="utf-8"))
    expected = Oracle(made).config
    paths = {key: tmp_path / "written" / given.pop(key) for key in PATHS}
    assert given.pop("joint_training", 0) == expected.pop("joint_training", 0)
    assert given == {key: value for key, value in expected.items() if key not in PATHS}

    encoder = json.loads(paths["model_conf_path"].read_text(encoding="utf-8"))
    theirs = json.loads(made.encoder.read_text(encoding="utf-8"))
    theirs["type_vocab_size"] = theirs.pop("sent_type_vocab_size")
    assert encoder == theirs
    assert paths["model_vocab_path"].read_text(encoding="utf-8").split("\n") == [*WORDS, ""]

    files = {path.name: path for path in paths["model_checkpoint_path"].iterdir()}
    assert files.keys() == made.own.keys()
    for name, array in made.own.items():
        assert files[name].read_bytes() == lod_tensor(array), name


@pytest.mark.parametrize(
    "network, lengths",
    [
        (lambda sizes: DualEncoder(sizes), {"query": 3, "passage": 40}),
        (lambda sizes: DualEncoder(sizes, shared=True), {"query": 12, "passage": 26}),
        (lambda sizes: CrossEncoder(sizes, head="logit", dropout=0.3), {"pair": 40}),
        (lambda sizes: CrossEncoder(sizes, head="classes"), {"pair": 12}),
    ],
    ids=["dual", "shared", "logit", "classes"],
)
def test_a_model_of_this_project_can_be_written_and_read(
    tmp_path: Path, vocab: Path, network: Callable, lengths: dict[str, int]
) -> None:
    sizes = ErnieConfig(V, 16, 2, 2, 64, 40, 2, 5, "relu", initializer_range=0.3)
    checkpoint = Checkpoint(network(sizes), Tokenizer(vocab, for_cn=True), lengths)
    convert.write(checkpoint, tmp_path / "written", to="reference")
    again = convert.read(tmp_path / "written")
    assert again.digest() == checkpoint.digest()
    assert again.network.config == sizes and again.lengths == lengths
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    np.testing.assert_array_equal(outputs(again), outputs(checkpoint))
    checkpoint.network.eval()
    assert convert.largest_difference(checkpoint, again) < 1e-6
    assert convert.notes(checkpoint, "reference") == []


def test_a_vocabulary_keeps_its_ids_whatever_its_file_was(tmp_path: Path, vocab: Path) -> None:
    tokens = {token: i + i // 50 for i, token in enumerate(WORDS)}  # some ids have no token
    (tmp_path / "ids.txt").write_text("".join(f"{t}\t{i}\n" for t, i in tokens.items()), encoding="utf-8")
    words = {"model": {"type": "WordPiece", "vocab": tokens}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    sizes = ErnieConfig(V + 10, 16, 1, 2, 64, 40, 2)
    for name in ("ids.txt", "tokenizer.json"):
        tokenizer = Tokenizer(tmp_path / name)
        checkpoint = Checkpoint(CrossEncoder(sizes), tokenizer, {"pair": 20})
        convert.write(checkpoint, tmp_path / name.replace(".", "-"), to="reference")
        again = convert.read(tmp_path / name.replace(".", "-")).tokenizer
        assert again.encode([*QUERIES, *PARAS]) == tokenizer.encode([*QUERIES, *PARAS])
        assert again.vocabulary.items() >= tokens.items() and len(again) == len(tokenizer)


def expressible(vocab: Path) -> dict[str, Any]:
    return {
        "sizes": ErnieConfig(V, 8, 1, 2, 32, 40, 2),
        "network": {},
        "tokenizer": {},
        "vocab": vocab,
    }


FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("pooling='mean'", {"network": {"pooling": "mean"}}),
    ("normalize=True", {"network": {"normalize": True}}),
    ("temperature=0.05", {"network": {"temperature": 0.05}}),
    ("one_segment=True", {"tokenizer": {"one_segment": True}}),
    ("lower_case=False", {"tokenizer": {"lower_case": False}}),
    ("ffn_size=33", {"sizes": ErnieConfig(V, 8, 1, 2, 33, 40, 2)}),
    ("layer_norm_eps=1e-12", {"sizes": ErnieConfig(V, 8, 1, 2, 32, 40, 2, layer_norm_eps=1e-12)}),
]


@pytest.mark.parametrize("problem, changes", FOREIGN, ids=[problem for problem, _ in FOREIGN])
def test_what_the_toolkit_cannot_express_is_refused(
    tmp_path: Path, vocab: Path, problem: str, changes: dict[str, Any]
) -> None:
    parts = expressible(vocab) | changes
    network = DualEncoder(parts["sizes"], **parts["network"])
    checkpoint = Checkpoint(network, Tokenizer(vocab, **parts["tokenizer"]), {"query": 8, "passage": 20})
    with pytest.raises(ValueError, match="the RocketQA toolkit cannot express this model") as error:
        convert.write(checkpoint, tmp_path / "written", to="reference")
    lines = str(error.value).split("\n")[1:]
    assert len(lines) == 1 and lines[0].strip().startswith(problem)
    assert list(tmp_path.iterdir()) == []


def test_everything_that_the_toolkit_cannot_express_is_named_at_once(tmp_path: Path, vocab: Path) -> None:
    sizes = ErnieConfig(V, 8, 1, 2, 33, 40, 2, layer_norm_eps=1e-12)
    network = DualEncoder(sizes, shared=True, pooling="mean", normalize=True, temperature=0.05)
    tokenizer = Tokenizer(vocab, lower_case=False, one_segment=True)
    with pytest.raises(ValueError) as error:
        convert.write(
            Checkpoint(network, tokenizer, {"query": 8, "passage": 20}), tmp_path / "written", to="reference"
        )
    assert all(problem in str(error.value) for problem, _ in FOREIGN)
    assert str(error.value).count("\n") == len(FOREIGN)

    cross = Checkpoint(CrossEncoder(sizes, head="pooled_logit"), Tokenizer(vocab), {"pair": 20})
    with pytest.raises(ValueError) as error:
        convert.write(cross, tmp_path / "written", to="reference")
    for problem in ("head='pooled_logit'", "ffn_size=33", "layer_norm_eps=1e-12"):
        assert problem in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_sentence_pieces_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / "spm.model", "wb") as model:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["the moon shines on the water", "an old king sleeps"]),
            model_writer=model,
            vocab_size=40,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece="[PAD]",
            unk_piece="[UNK]",
            control_symbols=["[CLS]", "[SEP]"],
            minloglevel=2,
        )
    network = CrossEncoder(ErnieConfig(V, 8, 1, 2, 32, 40, 2))
    checkpoint = Checkpoint(network, Tokenizer(tmp_path / "spm.model"), {"pair": 20})
    with pytest.raises(ValueError, match="cannot express .*\n.*SentencePiece"):
        convert.write(checkpoint, tmp_path / "written", to="reference")
    assert not (tmp_path / "written").exists()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "other",
    [
        {"notes.txt": "mine"},
        {"src/app.js": "mine"},
        {"src/app.js": "mine", "config.json": '{"name": "a web application"}'},
    ],
    ids=["a file", "a folder", "a config.json of something else"],
)
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, vocab: Path, other: dict[str, str]) -> None:
    target = tmp_path / "target"
    for name, text in other.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="target"):
        convert.write(some_checkpoint(vocab), target, to="reference")
    assert contents(tmp_path) == before


def test_a_file_in_the_way_is_left_alone(tmp_path: Path, vocab: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with pytest.raises(ValueError, match="target is a file"):
        convert.write(some_checkpoint(vocab), tmp_path / "target", to="reference")
    assert contents(tmp_path) == {"target": b"mine"}


def test_neighbours_of_the_target_are_left_alone(tmp_path: Path, vocab: Path) -> None:
    make(tmp_path, "joint")
    before = contents(tmp_path)
    for _ in range(2):
        convert.write(some_checkpoint(vocab), tmp_path / "target", to="reference")
    after = contents(tmp_path)
    assert {name: data for name, data in after.items() if not name.startswith("target/")} == before
    assert len(after) > len(before)


def test_a_model_takes_the_place_of_another_whole(tmp_path: Path, vocab: Path) -> None:
    target = tmp_path / "target"
    for kind, to in itertools.product(KINDS, ("native", "reference")):
        convert.write(some_checkpoint(vocab), target, to=to)
        checkpoint = convert.read(make(tmp_path / f"{kind}-{to}", kind).path)
        convert.write(checkpoint, target, to="reference")
        assert convert.read(target).digest() == checkpoint.digest()
        assert {path.name for path in target.iterdir()} == {
            "config.json",
            "ernie_config.json",
            "vocab.txt",
            "params",
        }


def test_a_model_may_be_written_to_where_it_was_read(tmp_path: Path) -> None:
    made = make(tmp_path / "model", "dual")
    made.path.rename(made.path.with_name("config.json"))
    checkpoint = convert.read(tmp_path / "model")
    before, files = outputs(checkpoint), contents(tmp_path / "model")
    with pytest.raises(ValueError, match="model holds .*some_params.*, which would be lost"):
        convert.write(checkpoint, tmp_path / "model", to="reference")
    assert contents(tmp_path / "model") == files
    shutil.rmtree(tmp_path / "model")
    convert.write(checkpoint, tmp_path / "model", to="native")
    for _ in range(2):
        convert.write(convert.read(tmp_path / "model"), tmp_path / "model", to="reference")
    assert convert.read(tmp_path / "model").digest() == checkpoint.digest()
    np.testing.assert_array_equal(outputs(convert.read(tmp_path / "model")), before)


def test_a_failed_write_leaves_the_old_model_whole(
    tmp_path: Path, vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.write(some_checkpoint(vocab), tmp_path / "target", to="reference")
    before = contents(tmp_path / "target")
    written: list[str] = []

    def fail(path: Path, array: np.ndarray) -> None:
        if len(written) == 5:
            raise OSError("the disk is full")
        written.append(path.name)
        path.write_bytes(b"half")

    monkeypatch.setattr(toolkit, "write_variable", fail)
    with pytest.raises(OSError, match="disk is full"):
        convert.write(some_checkpoint(vocab), tmp_path / "target", to="reference")
    assert len(written) == 5 and contents(tmp_path / "target") == before
    convert.read(tmp_path / "target")


def test_other_formats_come_from_the_toolkits_with_the_same_numbers(tmp_path: Path) -> None:
    for kind, to in itertools.product(KINDS, ("native", "paddlenlp", "huggingface")):
        made = make(tmp_path / f"{kind}-{to}", kind, NETWORKS[0].values[0])
        if to == "paddlenlp" or kind != "joint":
            checkpoint = convert.read(made.path)
            convert.write(checkpoint, tmp_path / "target" / f"{kind}-{to}", to=to)
            again = convert.read(tmp_path / "target" / f"{kind}-{to}")
            assert again.digest() == checkpoint.digest()
            assert_numbers((CrossModel if again.kind == "cross_encoder" else DualModel)(again), Oracle(made))


def test_the_digest_tells_how_text_is_read(tmp_path: Path) -> None:
    """An index of one of these is not searched with another."""
    made = make(tmp_path, "dual")
    digests = {convert.read(made.path).digest()}
    for change in ({"for_cn": True}, {"p_max_seq_len": 20}, {"share_parameter": 1}):
        (tmp_path / "other.json").write_text(json.dumps(json.loads(made.path.read_text()) | change))
        digests.add(convert.read(tmp_path / "other.json").digest())
    assert len(digests) == 4


def test_a_difference_that_is_no_number_is_not_hidden(tmp_path: Path) -> None:
    made = make(tmp_path, "dual")
    good, broken = convert.read(made.path), convert.read(made.path)
    weight = broken.network.passage.norm.weight
    weight.set_value(np.full(weight.shape, np.nan, np.float32))
    assert np.isnan(convert.largest_difference(good, broken))
