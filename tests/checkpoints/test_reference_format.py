"""The RocketQA toolkit's checkpoints: read with the oracle's numbers, refused with names, written back.

The checkpoints are made here: random variables, whose outputs the oracle computes, and a writer of their
files that shares nothing with the package's. What the reference itself computed is in `test_parity.py`.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import reference
import toy
from foreign import contents, read_json, write_json, write_words
from lod import lod_tensor
from reference import Sequence2, Sizes

import rocketqa_paddle
from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import convert, published
from rocketqa_paddle.checkpoints.formats import reference as toolkit
from rocketqa_paddle.checkpoints.formats.variable import read_variable
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder, describe
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer
from rocketqa_paddle.toolkit import CrossModel, DualModel, load_model

# Making a checkpoint of the toolkit -------------------------------------------------------------

LETTERS = string.ascii_lowercase + string.digits
WORDS = [*SPECIAL_TOKENS, *LETTERS, *(f"##{c}" for c in LETTERS), *string.punctuation, *"检索稠密"]
WORDS += [
    "the",
    "is",
    "a",
    "and",
    "moon",
    "satellite",
    "earth",
    "tides",
    "follow",
    "pull",
    "king",
    "hot",
    "bees",
]
WORDS = {word: number for number, word in enumerate(dict.fromkeys(WORDS))}
V = len(WORDS)
CLS, SEP = WORDS["[CLS]"], WORDS["[SEP]"]
TINY = Sizes(V, 8, 1, 2, 32, 40, 2)
TASKS = Sizes(V + 9, 16, 2, 1, 64, 40, 4, 3, "relu")

DUAL_CONFIG = {"model_type": "dual_encoder", "q_max_seq_len": 12, "p_max_seq_len": 26}
CROSS_CONFIG = {"model_type": "cross_encoder", "max_seq_len": 33, "share_parameter": 0}
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "dual": ({**DUAL_CONFIG, "share_parameter": 0}, ("query_", "titlepara_")),
    "shared": ({**DUAL_CONFIG, "share_parameter": 1}, ("query_", "titlepara_")),
    "classes": (CROSS_CONFIG, ("",)),
    "joint": ({**CROSS_CONFIG, "joint_training": 1}, ("query_", "titlepara_", "qtp_")),
}
"""Kind -> its JSON, and the prefixes of the encoders that the toolkit saves beside one another."""
PATHS = ("model_conf_path", "model_vocab_path", "model_checkpoint_path")
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


def encoder_json(sizes: Sizes) -> dict[str, Any]:
    return {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": sizes.activation,
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "sent_type_vocab_size" if sizes.task_types else "type_vocab_size": sizes.sentence_types,
        "vocab_size": sizes.vocab,
        "task_type_vocab_size": sizes.task_types or 16,  # without use_task_id it means nothing
        **({"use_task_id": True} if sizes.task_types else {}),
    }


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

    def put_shapes(self, shapes: Mapping[str, tuple[int, ...]], dtype: type = np.float32) -> None:
        """Write variables of ones."""
        for name, shape in shapes.items():
            self.put(name, np.ones(shape, dtype))

    def change(self, path: Path | None = None, *, without: str = "", **values: Any) -> Made:
        """Change the JSON or, given as `path`, another one."""
        path = path or self.path
        write_json(path, {k: v for k, v in (read_json(path) | values).items() if k != without})
        return self

    def refused(self, problem: str = "do not fit", error: type[Exception] = ValueError) -> str:
        """Check that the model is refused, and return the message."""
        with pytest.raises(error, match=problem) as found:
            load_model(self.path)
        return str(found.value)


def make(folder: Path, kind: str, sizes: Sizes = TINY, **config: Any) -> Made:
    """Write a checkpoint with random variables. `config` goes into its JSON."""
    made = Made(kind, folder / f"{kind}.json", sizes, variables_of(kind, sizes))
    paths = dict(zip(PATHS, ("ernie.json", "words.txt", "some_params"), strict=True))
    write_json(made.path, KINDS[kind][0] | paths | {"for_cn": False} | config)
    write_json(made.encoder, encoder_json(sizes))
    write_words(folder / "words.txt", WORDS)
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

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.made.path)

    def tokens(self, text: str) -> list[str]:
        return reference.word_pieces(text.replace(" ", "") if self.config.get("for_cn") else text, WORDS)

    def ids(self, text: str) -> list[int]:
        return [WORDS[token] for token in self.tokens(text)]

    def _pair(self, first: list[int], second: list[int], length: int) -> Sequence2:
        first, second = reference.truncate(first, second, length - 3)
        ids = [CLS, *first, SEP, *second, SEP]
        return ids, [0] * (len(first) + 2) + [1] * (len(second) + 1)

    def packed_queries(self) -> list[Sequence2]:
        kept = [self.ids(text)[: self.config["q_max_seq_len"] - 2] for text in QUERIES]
        return [([CLS, *ids, SEP], [0] * (len(ids) + 2)) for ids in kept]

    def packed_passages(self, titles: list[str] = TITLES) -> list[Sequence2]:
        length, pairs = self.config["p_max_seq_len"], zip(titles, PARAS, strict=True)
        return [self._pair(self.ids(title), self.ids(text), length) for title, text in pairs]

    def packed_pairs(self) -> list[Sequence2]:
        length, texts = self.config["max_seq_len"], zip(QUERIES, TITLES, PARAS, strict=True)
        return [self._pair(self.ids(q), self.ids(t) + self.ids(p), length) for q, t, p in texts]

    def _states(self, prefix: str, rows: list[Sequence2]) -> np.ndarray:
        made = self.made
        return np.stack([reference.ernie(made.variables, made.sizes, row, prefix)[0] for row in rows])

    def queries(self) -> np.ndarray:
        return self._states(self.made.own_prefixes[0], self.packed_queries())

    def passages(self, titles: list[str] = TITLES) -> np.ndarray:
        return self._states("titlepara_", self.packed_passages(titles))

    def matching(self) -> np.ndarray:
        if self.made.kind in ("dual", "shared"):
            return (self.queries() * self.passages()).sum(axis=-1)
        states = self._states(self.made.own_prefixes[0], self.packed_pairs())
        if self.made.kind == "joint":
            return np.array([reference.joint_logit(self.made.variables, state) for state in states])
        return reference.softmax(reference.classes_logits(self.made.variables, states))[:, 1]


def assert_close(given: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4, err_msg=what)


def assert_numbers(model: DualModel | CrossModel | Path | str, made: Made) -> None:
    """Everything that the model computes is what the reference computes."""
    model, oracle = load_model(model) if isinstance(model, Path | str) else model, Oracle(made)
    assert isinstance(model, DualModel if made.kind in ("dual", "shared") else CrossModel)
    if isinstance(model, DualModel):
        assert_close(model.encode_query(QUERIES), oracle.queries(), "queries")
        assert_close(model.encode_para(PARAS, TITLES), oracle.passages(), "passages")
    assert_close(model.matching(QUERIES, PARAS, TITLES), oracle.matching(), "matching")


def outputs(checkpoint: Checkpoint) -> np.ndarray:
    if checkpoint.kind == "cross_encoder":
        return CrossModel(checkpoint, 3).matching(QUERIES, PARAS, TITLES)
    model = DualModel(checkpoint, 3)
    return np.stack([model.encode_query(QUERIES), model.encode_para(PARAS, TITLES)])


@pytest.fixture(scope="module", params=[(TINY, False), (TASKS, True)], ids=["plain", "tasks-cn"])
def network(request):
    return request.param


@pytest.fixture(scope="module", params=KINDS)
def sample(request, network, tmp_path_factory):
    """A checkpoint of every kind and network. It is only read."""
    return make(tmp_path_factory.mktemp("sample"), request.param, network[0], for_cn=network[1])


def test_the_numbers_are_the_references(sample):
    before = contents(sample.path.parent)
    for batch_size in (1, 5):
        assert_numbers(load_model(str(sample.path), batch_size=batch_size), sample)
    assert contents(sample.path.parent) == before


def test_the_tokens_are_the_references(sample):
    oracle, checkpoint = Oracle(sample), convert.read(sample.path)
    tokenizer, lengths = checkpoint.tokenizer, checkpoint.lengths
    for text in (*QUERIES, *TITLES, *PARAS):
        assert tokenizer.tokenize(text) == oracle.tokens(text)
    if checkpoint.kind == "cross_encoder":
        assert tokenizer.pack_pairs(QUERIES, TITLES, PARAS, lengths["pair"]) == oracle.packed_pairs()
        return
    for packed, expected, length in (
        (tokenizer.pack_queries(QUERIES, lengths["query"]), oracle.packed_queries(), 12),
        (tokenizer.pack_passages(TITLES, PARAS, lengths["passage"]), oracle.packed_passages(), 26),
    ):
        assert packed == expected
        sizes = [len(row.token_ids) for row in packed]
        assert max(sizes) == length > min(sizes)


def test_the_texts_of_these_tests_are_hard_enough(tmp_path):
    plain, chinese = (Oracle(make(tmp_path / str(cn), "dual", for_cn=cn)) for cn in (False, True))
    for oracle in (plain, chinese):
        assert len(oracle.ids(QUERIES[4])) > 10 and len(oracle.ids(TITLES[4] + PARAS[4])) > 23
        assert len(oracle.ids(TITLES[4])) > 11
    assert "稠" in plain.tokens(QUERIES[1]) and "[UNK]" in plain.tokens(QUERIES[1])
    assert plain.tokens(QUERIES[0]) != chinese.tokens(QUERIES[0])
    scores = Oracle(make(tmp_path / "classes", "classes")).matching()  # neither zero nor one
    assert np.ptp(scores) > 0.01 and scores.min() > 0.001 and scores.max() < 0.999


def test_a_passage_without_titles_is_one_with_empty_titles(tmp_path):
    made = make(tmp_path, "dual")
    oracle, model = Oracle(made), load_model(made.path, batch_size=3)
    expected = oracle.passages(titles=[""] * len(PARAS))
    assert_close(model.encode_para(PARAS), expected)
    assert_close(model.matching(QUERIES, PARAS), (oracle.queries() * expected).sum(axis=-1))


def test_one_shared_tower_is_the_passages_with_or_without_the_querys_variables(tmp_path):
    made = make(tmp_path, "shared")
    with_both = load_model(made.path)
    assert with_both.checkpoint.network.shared
    for name in made.variables.keys() - made.own.keys():
        (made.params / name).unlink()
    assert {name.partition("_")[0] for name in contents(made.params)} == {"titlepara"}
    alone = load_model(made.path)
    assert_numbers(alone, made)
    np.testing.assert_array_equal(alone.encode_query(QUERIES), with_both.encode_query(QUERIES))


def test_a_joint_folder_gives_both_its_networks(tmp_path):
    made = make(tmp_path, "joint")
    for kind in ("dual", "shared"):
        paths = {key: value for key, value in Oracle(made).config.items() if key in PATHS}
        write_json(tmp_path / f"{kind}.json", KINDS[kind][0] | paths)
        assert_numbers(tmp_path / f"{kind}.json", replace(made, kind=kind, path=tmp_path / f"{kind}.json"))


@every_kind
def test_what_training_keeps_and_the_network_lacks_is_passed_over(tmp_path, kind):
    made, h = make(tmp_path, kind), TINY.hidden
    digest = convert.read(made.path).digest()
    for name, array in made.variables.items():
        made.put_shapes(dict.fromkeys((f"{name}_moment1_0", f"{name}_moment2_0"), array.shape))
        made.put_shapes(dict.fromkeys((f"{name}_beta1_pow_acc_0", f"{name}_beta2_pow_acc_0"), (1,)))
    made.put_shapes({"@LR_DECAY_COUNTER@": (1,)}, np.int64)
    made.put_shapes(dict.fromkeys(("num_bad_steps_0", "num_good_steps_0"), (1,)), np.int32)
    names = ("learning_rate_0", "scheduled_learning_rate", "loss_scaling_0")
    made.put_shapes(dict.fromkeys(names, (1,)))
    made.put(".DS_Store", b"\0")
    heads = {"next_sent_fc.w_0": (h, 2), "mask_lm_out_fc.b_0": (V,), "titlepara_task_embedding": (16, h)}
    if kind != "classes":
        heads |= {"pooled_fc.w_0": (h, h), "pooled_fc.b_0": (h,)}
    made.put_shapes(heads)
    assert convert.read(made.path).digest() == digest


@pytest.mark.parametrize("kind, dtype", [("dual", "float16"), ("joint", "float64")])
def test_variables_of_other_floating_point_types_are_read(tmp_path, kind, dtype):
    made = make(tmp_path, kind)
    rounded = {name: array.astype(dtype) for name, array in made.variables.items()}
    for name, array in rounded.items():
        made.put(name, array)
    assert_numbers(made.path, replace(made, variables=rounded))


def test_a_vocabulary_with_ids_is_read_by_its_ids(tmp_path):
    made = make(tmp_path, "joint")
    write_words(tmp_path / "words.txt", reversed([f"{token}\t{i}" for token, i in WORDS.items()]))
    assert_numbers(made.path, made)


@pytest.mark.parametrize(
    "kind, changes, without",
    [
        ("dual", {"share_parameter": False}, ["for_cn", "joint_training", "model_type"]),
        ("dual", {"comment": "other", "max_seq_len": 7}, ["share_parameter"]),
        ("shared", {"share_parameter": True}, ["for_cn"]),
        ("classes", {"joint_training": False}, ["share_parameter", "model_type"]),
        ("joint", {"joint_training": True}, ["share_parameter"]),
    ],
)
def test_switches_and_the_kind_may_be_left_out_or_written_otherwise(tmp_path, kind, changes, without):
    """The lengths tell the kind where `model_type` is left out."""
    made = make(tmp_path, kind, **changes)
    for key in without:
        made.change(without=key)
    made.change(made.encoder, use_task_id=False, epsilon=3)
    assert_numbers(made.path, made)


def test_of_the_two_keys_for_sentence_types_the_toolkits_own_counts(tmp_path):
    made = make(tmp_path, "joint")
    made.change(made.encoder, type_vocab_size=9, sent_type_vocab_size=TINY.sentence_types)
    assert_numbers(made.path, made)
    made.change(made.encoder, type_vocab_size=TINY.sentence_types, sent_type_vocab_size=0)
    assert_numbers(made.path, made)


def test_the_same_call_as_the_toolkits_works(tmp_path):
    made = make(tmp_path, "classes")
    model = rocketqa_paddle.load_model(model=str(made.path), use_cuda=False, device_id=0, batch_size=16)
    scores = list(model.matching(query=QUERIES, para=PARAS, title=TITLES))
    assert_close(np.array(scores), Oracle(made).matching())


# Where its files are ----------------------------------------------------------------------------


def test_paths_are_relative_to_the_json_and_not_to_the_working_directory(tmp_path, monkeypatch):
    made, decoy = (make(tmp_path / "models" / name, "dual") for name in ("one", "two"))
    decoy.put("query_pre_encoder_layer_norm_bias", np.zeros(TINY.hidden, np.float32))
    digest = convert.read(made.path).digest()
    for folder, path in (
        (tmp_path, "models/one/dual.json"),
        (made.path.parent, "dual.json"),
        (made.path.parent, "./dual.json"),
        (decoy.path.parent, "../one/dual.json"),
        (decoy.path.parent, str(made.path)),
    ):
        monkeypatch.chdir(folder)
        for given in (path, Path(path)):
            assert convert.read(given).digest() == toolkit.read(given).digest() == digest
    assert convert.read(decoy.path).digest() != digest


def test_paths_may_lead_elsewhere_or_be_absolute(tmp_path):
    made = make(tmp_path / "files", "joint")
    (tmp_path / "configs").mkdir()
    other = replace(made, path=made.path.rename(tmp_path / "configs" / "joint.json"))
    files = ("../files/ernie.json", str(tmp_path / "files" / "words.txt"), "../files/some_params/")
    other.change(**dict(zip(PATHS, files, strict=True)))
    assert_numbers(other.path, other)


def test_a_linked_json_is_where_its_link_is(tmp_path):
    made = make(tmp_path / "snapshot", "classes")
    blob = made.path.rename(tmp_path / "0a1b2c")  # so keep caches such as Hugging Face's their files
    made.path.symlink_to(blob)
    assert_numbers(made.path, made)


@pytest.mark.parametrize("key", PATHS)
def test_a_file_that_is_not_there_is_told_with_its_key(tmp_path, key):
    made, kind = make(tmp_path, "dual"), "folder" if key == "model_checkpoint_path" else "file"
    for value in ("gone/away", "some_params" if kind == "file" else "words.txt"):
        problem = f"{key} is '{value}', but there is no such {kind}"
        assert str(made.path) in made.change(**{key: value}).refused(problem, FileNotFoundError)


# Variables that do not fit ----------------------------------------------------------------------


@every_kind
def test_every_variable_that_a_network_needs_is_missed_by_name(tmp_path, kind):
    made = make(tmp_path, kind, TASKS)
    assert len(made.own) > 20
    for name, array in made.own.items():
        content = (made.params / name).read_bytes()
        (made.params / name).unlink()
        assert made.refused("do not fit the network").split("\n")[1:] == [
            f"  missing {name} {list(array.shape)}"
        ]
        made.put(name, content)


def test_of_many_missing_variables_the_first_are_named_and_the_others_counted(tmp_path):
    made = make(tmp_path, "dual", TASKS)
    missing = sorted(made.own)[:30]
    for name in missing:
        (made.params / name).unlink()
    *named, more = made.refused("do not fit").split("\n")[1:]
    assert named == [f"  missing {name} {list(made.own[name].shape)}" for name in missing[:5]]
    assert more == "  and 25 more missing"


@every_kind
def test_missing_extra_and_misshapen_variables_are_all_named_in_one_error(tmp_path, kind):
    made, h = make(tmp_path, kind), TINY.hidden
    prefix = made.own_prefixes[-1]
    missing = {"word_embedding": (V, h), "encoder_layer_0_post_ffn_layer_norm_scale": (h,)}
    extra = {
        "surprise": (3, 2),
        f"{prefix}encoder_layer_0_ffn_fc_2.w_0": (h, h),
        f"{prefix}word_embedding_moment": (h,),
        f"{prefix}moment3_0": (1,),
        "learning_rate": (1,),
    }
    misshapen = {
        "pos_embedding": ((41, h), (40, h)),
        "sent_embedding": ((h, 2), (2, h)),
        "encoder_layer_0_ffn_fc_0.w_0": ((4 * h, h), (h, 4 * h)),
        "encoder_layer_0_ffn_fc_1.b_0": ((1, h), (h,)),
        "pre_encoder_layer_norm_bias": ((h, 1), (h,)),
    }
    for name in missing:
        (made.params / f"{prefix}{name}").unlink()
    made.put_shapes(extra | {f"{prefix}{name}": given for name, (given, _) in misshapen.items()})
    first, *lines = made.refused().split("\n")
    assert str(made.params) in first
    assert {line.strip() for line in lines} == {
        *(f"missing {prefix}{name} {list(shape)}" for name, shape in missing.items()),
        *(f"left over {name} {list(shape)}" for name, shape in extra.items()),
        *(f"{prefix}{name} is {list(a)}, expected {list(b)}" for name, (a, b) in misshapen.items()),
    }


@pytest.mark.parametrize("content", [b"notes", b"", np.zeros(3, np.int64)], ids=["text", "empty", "integers"])
def test_an_extra_file_that_is_no_variable_of_numbers_is_named_with_the_others(tmp_path, content):
    made = make(tmp_path, "dual")
    made.put("a_counter", content)
    (made.params / "query_word_embedding").unlink()
    made.put_shapes({"titlepara_pos_embedding": (2, 2)})
    message = made.refused()
    for name in ("a_counter", "query_word_embedding", "titlepara_pos_embedding"):
        assert name in message


@every_kind
def test_a_layer_more_or_less_than_the_sizes_say_is_an_error(tmp_path, kind):
    made = make(tmp_path, kind, replace(TINY, layers=2))
    lines = made.change(made.encoder, num_hidden_layers=1).refused("do not fit the network").split("\n")[1:]
    found = {line.split()[2] for line in lines[:-1]}
    second = {name for name in made.variables if "encoder_layer_1_" in name}
    assert len(found) == 5 and found <= second
    assert lines[-1] == f"  and {len(second) - 5} more left over"
    problem = rf"missing {sorted(made.own_prefixes)[0]}encoder_layer_2_ffn_fc_0\.b_0 \[32\]"
    made.change(made.encoder, num_hidden_layers=3).refused(problem)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"share_parameter": 0, "model_type": "dual_encoder"}, "missing query_encoder_layer_0_ffn_fc_0"),
        ({"model_type": "cross_encoder", "joint_training": 1}, "missing qtp__cls_out_w"),
        ({"model_type": "cross_encoder", "joint_training": 0}, "missing _cls_out_b"),
    ],
)
def test_a_json_of_another_kind_than_the_folder_is_an_error(tmp_path, changes, problem):
    made = make(tmp_path, "shared", max_seq_len=20)
    for name in made.variables.keys() - made.own.keys():
        (made.params / name).unlink()
    made.change(**changes).refused(problem)


def test_a_task_embedding_that_the_sizes_promise_is_missed(tmp_path):
    made = make(tmp_path, "joint")
    made.change(made.encoder, use_task_id=True).refused(r"missing qtp_task_embedding \[16, 8\]")


# A JSON that is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, keys", [("dual", ("q_max_seq_len", "p_max_seq_len")), ("classes", ("max_seq_len",))]
)
def test_a_missing_key_is_named(tmp_path, kind, keys):
    made = make(tmp_path, kind)
    whole = read_json(made.path)
    for key in (*keys, *PATHS):
        write_json(made.path, whole)
        made.change(without=key).refused(rf"{kind}\.json: .*{key}")


def test_a_missing_or_wrong_size_is_refused(tmp_path):
    made = make(tmp_path, "dual", replace(TINY, task_types=3))
    whole = read_json(made.encoder)
    for key in whole.keys() - {"initializer_range", "use_task_id"}:
        if "dropout" not in key:
            write_json(made.encoder, whole)
            named = "type_vocab_size" if key == "sent_type_vocab_size" else key
            made.change(made.encoder, without=key).refused(rf"ernie\.json: no '{named}'")
    for key, value in (
        ("hidden_size", "8"),
        ("num_hidden_layers", None),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("vocab_size", -1),
        ("max_position_embeddings", 40.5),
        ("hidden_act", "swish"),
        ("hidden_act", ["relu"]),
    ):
        write_json(made.encoder, whole)
        made.change(made.encoder, **{key: value}).refused(r"ernie\.json: ")


@pytest.mark.parametrize(
    "kind, key, values, problem",
    [
        (
            "dual",
            "model_type",
            ["dual", "Dual_Encoder", "bert", "", None, 1, ["dual_encoder"]],
            r"dual\.json: model_type .*expected 'dual_encoder' or 'cross_encoder'",
        ),
        ("dual", "for_cn", ["0", "false", 2, None, []], r"\.json: for_cn .*, expected true, false, 0 or 1"),
        ("dual", "share_parameter", ["0", 2, None], "share_parameter .*, expected true, false, 0 or 1"),
        ("joint", "joint_training", ["0", 2, None], "joint_training .*, expected true, false, 0 or 1"),
        ("dual", "q_max_seq_len", ["12", None, 0, -3], "q_max_seq_len"),
        ("joint", "max_seq_len", ["12", None, 0, -3], "max_seq_len"),
        *(("dual", key, [None, 3, "x" * 5000], f"{key} .*expected a path") for key in PATHS),
        ("dual", "q_max_seq_len", [41], "query length 41, but the encoder has only 40 positions"),
        ("shared", "p_max_seq_len", [512], "passage length 512, but the encoder has only 40 positions"),
        ("joint", "max_seq_len", [41], "pair length 41, but the encoder has only 40 positions"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path, kind, key, values, problem):
    made = make(tmp_path, kind)
    for value in values:
        made.change(**{key: value}).refused(problem)
    if key.endswith("max_seq_len"):
        load_model(made.change(**{key: 40}).path)


def test_the_kind_that_is_asked_for_is_checked(tmp_path):
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
def test_what_is_no_json_object_is_refused(tmp_path, content, problem):
    made = make(tmp_path, "dual")
    for path in (made.encoder, made.path):
        path.write_bytes(content)
        made.refused(rf"{path.name}: {problem}")


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    made = make(tmp_path, "joint", replace(TINY, vocab=V - 5))
    made.refused(f"words.txt: {V} tokens, but the encoder has {V - 5}")
    write_words(tmp_path / "words.txt", [*WORDS][5:])
    made.refused(r"words.txt: the vocabulary has no \[PAD\]")


# Variables that are broken or hostile -------------------------------------------------------------


def test_a_broken_variable_is_named_by_the_model(tmp_path):
    made = make(tmp_path, "classes")
    path = made.params / "_cls_out_w"
    for content in (b"", path.read_bytes()[:-1], b"garbage", lod_tensor(np.zeros((8, 2), np.int64))):
        path.write_bytes(content)
        made.refused("_cls_out_w: not a whole LoDTensor")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("name", ["query_pos_embedding", "extra", "query_pos_embedding_moment1_0"])
def test_a_pickle_is_never_executed(tmp_path, name):
    marker, made = tmp_path / "executed", make(tmp_path / "model", "dual")
    for protocol in (0, 2, 4):
        content = pickle.dumps(Payload(marker), protocol)
        pickle.loads(content)
        assert marker.exists()  # it would have been
        marker.unlink()
        path = made.put(name, content)
        if name.endswith("_moment1_0"):
            load_model(made.path)
        else:
            made.refused(name)
            with pytest.raises(ValueError, match=rf"{name}: not a whole LoDTensor"):
                read_variable(path)
        assert not marker.exists()


def test_a_tensor_that_paddle_pickled_is_refused_and_nothing_is_unpickled(tmp_path, monkeypatch):
    made = make(tmp_path, "dual")
    digest, path = convert.read(made.path).digest(), made.params / "query_pos_embedding"
    whole = path.read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    paddle.save(paddle.to_tensor(made.variables[path.name]), str(path))
    for module in ("pickle.load", "pickle.loads", "pickle.Unpickler", "paddle.load", "numpy.load"):
        monkeypatch.setattr(module, refuse)
    made.refused("query_pos_embedding: not a whole LoDTensor")
    path.write_bytes(whole)
    assert convert.read(made.path).digest() == digest


# Finding ----------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tokenizer):
    """A dual encoder of this project."""
    made = toy.dual(tokenizer)
    made.network.eval()
    return made


def test_a_json_and_a_folder_with_config_json_are_found(tmp_path):
    made = make(tmp_path / "one", "dual")
    assert convert.find(made.path) == ("reference", made.path)
    with pytest.raises(FileNotFoundError, match=rf"one holds .*: give one of {made.path.name}"):
        convert.find(tmp_path / "one")
    config = made.path.rename(tmp_path / "one" / "config.json")
    for source in (tmp_path / "one", config, str(tmp_path / "one")):
        assert convert.find(source) == ("reference", config), source
    with pytest.raises(ValueError, match="ernie.json: not the JSON of a toolkit's model"):
        convert.find(made.encoder)
    assert_numbers(tmp_path / "one", replace(made, path=config))
    for path in (made.path.parent / "words.txt", made.params / "query_word_embedding"):
        with pytest.raises(ValueError, match=f"{path.name} is a file, expected the JSON"):
            load_model(path)


def test_the_config_of_a_checkpoint_folder_finds_the_folder(tmp_path, checkpoint):
    convert.write(checkpoint, tmp_path / "native", to="native")
    found = convert.find(tmp_path / "native" / "config.json")
    assert found == ("native", tmp_path / "native")
    assert convert.read_found(found).digest() == checkpoint.digest()


def test_a_json_may_name_a_checkpoint_folder_of_this_project(tmp_path, tokenizer):
    checkpoint = toy.dual(tokenizer, pooling="mean", normalize=True)
    convert.write(checkpoint, tmp_path / "step_7", to="native")
    write_json(tmp_path / "config.json", {"model_checkpoint_path": "step_7"})
    for source in (tmp_path, tmp_path / "config.json"):
        again = convert.read(source)
        assert again.digest() == checkpoint.digest() and again.network.pooling == "mean"


@pytest.fixture
def over_ours(tmp_path):
    """A toolkit's JSON of a retriever, which names a checkpoint folder of this project."""
    made = make(tmp_path, "dual")
    convert.write(convert.read(made.path), tmp_path / "step_7", to="native")
    return made.change(model_checkpoint_path="step_7")


def test_lengths_of_a_json_over_a_checkpoint_of_this_project_count(over_ours):
    assert (
        convert.read(over_ours.path).digest() == checkpoints.load(over_ours.path.parent / "step_7").digest()
    )
    over_ours.change(q_max_seq_len=9, p_max_seq_len=38)
    assert convert.read(over_ours.path).lengths == {"query": 9, "passage": 38}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"p_max_seq_len": 384}, "passage length 384, but the encoder has only 40 positions"),
        ({"p_max_seq_len": "38"}, "p_max_seq_len '38', expected a number from 3 on"),
        ({"for_cn": True}, "for_cn is True, there it is False"),
        ({"for_cn": "true"}, "for_cn is 'true', there it is False"),
        ({"share_parameter": 1}, "share_parameter is 1, there it is False"),
        ({"model_type": "cross_encoder"}, "model_type is 'cross_encoder', there it is 'dual_encoder'"),
    ],
)
def test_a_json_that_contradicts_a_checkpoint_of_this_project_is_refused(over_ours, changes, problem):
    message = over_ours.change(**changes).refused(problem)
    assert str(over_ours.path) in message


def test_a_json_with_other_files_than_a_checkpoint_of_this_project_is_refused(over_ours):
    folder = over_ours.path.parent
    over_ours.change(over_ours.encoder, num_hidden_layers=7)
    over_ours.refused("model_conf_path: num_layers is 7, there it is 1")
    over_ours.change(over_ours.encoder, num_hidden_layers=1)
    write_words(folder / "other.txt", [*SPECIAL_TOKENS, "moon"])
    over_ours.change(model_vocab_path="other.txt").refused(
        "model_vocab_path: .*other.txt has other tokens than"
    )
    over_ours.change(model_vocab_path="gone.txt").refused("model_vocab_path is 'gone.txt'", FileNotFoundError)


def test_a_json_over_a_folder_of_another_library_says_what_to_give(tmp_path):
    made = make(tmp_path, "dual")
    convert.write(convert.read(make(tmp_path / "shared", "shared").path), tmp_path / "hf", to="huggingface")
    message = made.change(model_checkpoint_path="hf").refused("model_checkpoint_path is 'hf'")
    assert message.endswith(f"model.safetensors, modules.json: give that folder itself, {tmp_path / 'hf'}")


def test_a_published_name_is_preferred_to_a_folder_and_says_the_kind(tmp_path, monkeypatch):
    fetched: list[str] = []
    for name, kind in {"v1_marco_de": "dual", "v2_marco_ce": "joint"}.items():
        made = make(tmp_path / "cache" / name, kind)
        made = replace(made, path=made.path.rename(made.path.with_name("config.json")))
        made.change(without="model_type")
        decoy = make(tmp_path / "work" / name, kind)
        shutil.rmtree(decoy.params)
        monkeypatch.chdir(tmp_path / "work")
        monkeypatch.setattr(
            published, "fetch", lambda name: fetched.append(name) or tmp_path / "cache" / name
        )

        assert convert.find(name) == ("reference", made.path)
        assert_numbers(name, made)
        assert fetched and set(fetched) == {name}
        fetched.clear()
        with pytest.raises(FileNotFoundError, match="work/v._marco_.e holds several models"):
            convert.find(f"./{name}")
        assert not fetched


def test_where_nothing_is_the_error_tells_what_can_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.paddlenlp, "names", frozenset)
    with pytest.raises(FileNotFoundError, match="'v1_marco_d': no such file.*did you mean v1_marco_de?"):
        convert.find("v1_marco_d")
    with pytest.raises(FileNotFoundError, match="gone.json': no such file or folder") as error:
        convert.find(tmp_path / "gone.json")
    assert "did you mean" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no model there"):
        convert.find(tmp_path)


def test_a_folder_in_an_installed_package_may_hold_a_toolkits_model(tmp_path, monkeypatch):
    made = make(tmp_path / "site" / "made_models" / "en", "shared")
    config = made.path.rename(made.path.with_name("config.json"))
    (tmp_path / "site" / "made_models" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert_numbers("package:made_models/en", replace(made, path=config))


# Writing ----------------------------------------------------------------------------------------


def test_what_is_written_reads_back_to_the_same_model(sample, tmp_path):
    checkpoint = convert.read(sample.path)
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
    assert convert.largest_difference(checkpoint, again) == 0
    assert convert.notes(checkpoint, "reference") == []


def test_what_is_written_is_what_the_toolkit_reads(sample, tmp_path):
    convert.write(convert.read(sample.path), tmp_path / "written", to="reference")
    given, expected = read_json(tmp_path / "written" / "config.json"), Oracle(sample).config
    paths = {key: tmp_path / "written" / given.pop(key) for key in PATHS}
    assert given.pop("joint_training", 0) == expected.get("joint_training", 0)
    assert given == {k: v for k, v in expected.items() if k not in (*PATHS, "joint_training")}

    encoder = read_json(sample.encoder)
    encoder["type_vocab_size"] = encoder.pop("sent_type_vocab_size", encoder.get("type_vocab_size"))
    if not sample.sizes.task_types:
        del encoder["task_type_vocab_size"]
    assert read_json(paths["model_conf_path"]) == encoder
    assert paths["model_vocab_path"].read_text(encoding="utf-8").split("\n") == [*WORDS, ""]
    expected = {name: lod_tensor(array) for name, array in sample.own.items()}
    assert contents(paths["model_checkpoint_path"]) == expected


def test_a_vocabulary_keeps_its_ids_whatever_its_file_was(tmp_path):
    tokens = {token: i + i // 50 for i, token in enumerate(WORDS)}  # some ids have no token
    write_words(tmp_path / "ids.txt", [f"{token}\t{i}" for token, i in tokens.items()])
    write_json(tmp_path / "tokenizer.json", {"model": {"type": "WordPiece", "vocab": tokens}})
    sizes = ErnieConfig(V + 10, 16, 1, 2, 64, 40, 2)
    for name in ("ids.txt", "tokenizer.json"):
        tokenizer = Tokenizer(tmp_path / name)
        convert.write(
            Checkpoint(CrossEncoder(sizes), tokenizer, {"pair": 20}), tmp_path / "out", to="reference"
        )
        again = convert.read(tmp_path / "out").tokenizer
        assert again.encode([*QUERIES, *PARAS]) == tokenizer.encode([*QUERIES, *PARAS])
        assert again.vocabulary.items() >= tokens.items() and len(again) == len(tokenizer)


NAMES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_size", "max_positions", "sent_types")
SMALL = dict(zip(NAMES, (V, 8, 1, 2, 32, 40, 2), strict=True))
FOREIGN = [  # what the toolkit cannot express, and where it is: in the network, its tokenizer, or its sizes
    ("pooling='mean'", "network", {"pooling": "mean"}),
    ("normalize=True", "network", {"normalize": True}),
    ("temperature=0.05", "network", {"temperature": 0.05}),
    ("one_segment=True", "tokenizer", {"one_segment": True}),
    ("lower_case=False", "tokenizer", {"lower_case": False}),
    ("ffn_size=33", "sizes", {"ffn_size": 33}),
    ("layer_norm_eps=1e-12", "sizes", {"layer_norm_eps": 1e-12}),
]


def refusal(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """The problems that writing a model for the toolkit names."""
    with pytest.raises(ValueError, match="the RocketQA toolkit cannot express this model") as error:
        convert.write(checkpoint, folder / "written", to="reference")
    assert not (folder / "written").exists()
    return [line.strip() for line in str(error.value).split("\n")[1:]]


def test_what_the_toolkit_cannot_express_is_refused_all_at_once(tmp_path):
    vocab = write_words(tmp_path / "vocab.txt", WORDS)
    every: dict[str, dict] = {"network": {}, "tokenizer": {}, "sizes": {}}
    for problem, part, change in FOREIGN:
        parts = {"network": {}, "tokenizer": {}, "sizes": {}} | {part: change}
        every[part] |= change
        for chosen, expected in ((parts, [problem]), (every, None)):
            sizes = ErnieConfig(**(SMALL | chosen["sizes"]))
            network = DualEncoder(sizes, **chosen["network"])
            tokenizer = Tokenizer(vocab, **chosen["tokenizer"])
            found = refusal(Checkpoint(network, tokenizer, {"query": 8, "passage": 20}), tmp_path)
            expected = expected or [p for p, part, change in FOREIGN if every[part].items() >= change.items()]
            assert len(found) == len(expected)
            assert all(any(line.startswith(p) for line in found) for p in expected)
    cross = Checkpoint(CrossEncoder(sizes, head="pooled_logit"), Tokenizer(vocab), {"pair": 20})
    found = refusal(cross, tmp_path)
    for problem in ("head='pooled_logit'", "ffn_size=33", "layer_norm_eps=1e-12"):
        assert any(line.startswith(problem) for line in found)


def test_sentence_pieces_are_refused(tmp_path):
    texts = ["the moon shines on the water", "an old king sleeps"]
    pieces = toy.sentence_pieces(tmp_path, texts, 40, **toy.PADDED, control_symbols=["[CLS]", "[SEP]"])
    tokenizer = Tokenizer(pieces)
    network = CrossEncoder(ErnieConfig(**(SMALL | {"vocab_size": len(tokenizer)})))
    assert any("SentencePiece" in p for p in refusal(Checkpoint(network, tokenizer, {"pair": 20}), tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"target": "mine"},
        {"target/notes.txt": "mine"},
        {"target/src/app.js": "mine"},
        {"target/src/app.js": "mine", "target/config.json": '{"name": "a web application"}'},
    ],
    ids=["a file", "a folder with a file", "a folder", "a config.json of something else"],
)
def test_other_files_are_left_alone(tmp_path, checkpoint, other):
    for name, text in other.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="target"):
        convert.write(checkpoint, tmp_path / "target", to="reference")
    assert contents(tmp_path) == before


def test_a_model_takes_the_place_of_another_whole_and_neighbours_stay(tmp_path, checkpoint):
    target = tmp_path / "target"
    mades = {kind: make(tmp_path / "made" / kind, kind) for kind in ("dual", "classes")}
    before = contents(tmp_path)
    for made, to in itertools.product(mades.values(), ("native", "reference")):
        convert.write(checkpoint, target, to=to)
        other = convert.read(made.path)
        convert.write(other, target, to="reference")
        assert convert.read(target).digest() == other.digest()
        assert {p.name for p in target.iterdir()} == {
            "config.json",
            "ernie_config.json",
            "vocab.txt",
            "params",
        }
    after = contents(tmp_path)
    assert {name: data for name, data in after.items() if not name.startswith("target/")} == before


def test_a_model_may_be_written_to_where_it_was_read(tmp_path):
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


def test_a_failed_write_leaves_the_old_model_whole(tmp_path, checkpoint, monkeypatch):
    convert.write(checkpoint, tmp_path / "target", to="reference")
    before, written = contents(tmp_path / "target"), []

    def fail(path: Path, array: np.ndarray) -> None:
        if len(written) == 5:
            raise OSError("the disk is full")
        written.append(path.name)
        path.write_bytes(b"half")

    monkeypatch.setattr(toolkit, "write_variable", fail)
    with pytest.raises(OSError, match="disk is full"):
        convert.write(checkpoint, tmp_path / "target", to="reference")
    assert len(written) == 5 and contents(tmp_path / "target") == before
    convert.read(tmp_path / "target")


@every_kind
def test_other_formats_come_from_the_toolkits_with_the_same_numbers(tmp_path, kind):
    made = make(tmp_path / "made", kind)
    checkpoint = convert.read(made.path)
    for to in ("native", "paddlenlp", "huggingface"):
        convert.write(checkpoint, tmp_path / to, to=to)
        again = convert.read(tmp_path / to)
        assert again.digest() == checkpoint.digest()
        assert_numbers((CrossModel if again.kind == "cross_encoder" else DualModel)(again), made)


def test_the_digest_tells_how_text_is_read(tmp_path):
    """An index of one of these is not searched with another."""
    made = make(tmp_path, "dual")
    digests = {convert.read(made.path).digest()}
    for change in ({"for_cn": True}, {"p_max_seq_len": 20}, {"share_parameter": 1}):
        write_json(tmp_path / "other.json", read_json(made.path) | change)
        digests.add(convert.read(tmp_path / "other.json").digest())
    assert len(digests) == 4
