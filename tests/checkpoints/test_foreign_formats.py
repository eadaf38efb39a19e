"""What folders of Hugging Face and PaddleNLP have in common: read and written with the oracle's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import reference
import toy
from foreign import (
    HF,
    KINDS,
    NLP,
    PAIRS,
    PASSAGES,
    QUERIES,
    TASKS,
    TEXTS,
    TITLES,
    Library,
    check_retriever,
    close,
    contents,
    dual,
    odds,
    outputs,
    random_model,
    read_json,
    scores,
    towers,
    vectors,
    write,
    write_json,
    write_words,
    written,
)
from scipy.special import expit

import rocketqa_paddle
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks.encoders import Checkpoint, describe

both = pytest.mark.parametrize("library", [HF, NLP], ids=["huggingface", "paddlenlp"])

# Reading: encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "library, prefix, sizes, config",
    [
        pytest.param(HF, "", {}, {}, id="hf"),
        pytest.param(HF, "bert.", {"activation": "relu", "epsilon": 1e-5, "heads": 2}, {}, id="hf-relu"),
        pytest.param(HF, "", {"task_types": 3, "sentence_types": 4}, {}, id="hf-ernie"),
        pytest.param(HF, "ernie.", {"task_types": 16, "layers": 3}, {}, id="hf-ernie-prefix"),
        pytest.param(HF, "", {}, {"model_type": "ernie"}, id="hf-ernie-without-task-ids"),
        pytest.param(NLP, "", {}, {}, id="nlp"),
        pytest.param(NLP, "ernie.", {"task_types": 3, "sentence_types": 4}, {}, id="nlp-tasks"),
        pytest.param(NLP, "ernie.", {"activation": "relu", "heads": 2, "layers": 3}, {}, id="nlp-relu"),
        pytest.param(NLP, "bert.", {"epsilon": 1e-3}, {"model_type": "bert"}, id="nlp-bert"),
    ],
)
def test_an_encoder_gives_the_oracles_vectors(tmp_path, words, library, prefix, sizes, config):
    model = random_model(words, **sizes)
    folder = write(tmp_path / "model", model, library, prefix, **config)
    assert convert.find(folder).format == library.name
    checkpoint = check_retriever(folder, model)
    assert checkpoint.network.config.task_types == model.sizes.task_types
    assert checkpoint.lengths == {"query": 64, "passage": 64}
    assert max(len(model.pair(*passage)[0]) for passage in PASSAGES) == 64


@both
def test_heads_of_language_models_poolers_and_buffers_are_left_out(tmp_path, words, library):
    model = random_model(words)
    plain = write(tmp_path / "plain", model, library, "bert.", model_type="bert")
    full = write(tmp_path / "full", model, library, "bert.", model_type="bert")
    h, v = model.sizes.hidden, model.sizes.vocab
    shapes = {
        "bert.pooler.dense.weight": (h, h),
        "bert.pooler.dense.bias": (h,),
        "cls.predictions.bias": (v,),
        "cls.predictions.decoder.weight": (v, h),
        "cls.predictions.decoder_weight": (v, h),
        "cls.predictions.transform.dense.weight": (h, h),
        "cls.predictions.transform.weight": (h, h),
        "cls.predictions.transform.LayerNorm.weight": (h,),
        "cls.predictions.layer_norm.bias": (h,),
        "cls.seq_relationship.weight": (2, h),
        "cls.seq_relationship.bias": (2,),
    }
    heads = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    if library is HF:
        heads |= {f"bert.embeddings.{name}_ids": np.zeros((1, 64)) for name in ("position", "token_type")}
    library.save(full, library.arrays(model, "bert.") | heads)
    assert convert.read(plain).digest() == convert.read(full).digest()
    assert convert.read(full).kind == "dual_encoder"


@both
def test_half_precision_is_read_as_single(tmp_path, words, library):
    model = random_model(words)
    folder = write(tmp_path / "model", model, library)
    library.save(folder, {n: a.astype(np.float16) for n, a in library.arrays(model).items()})
    model.variables.update({n: a.astype(np.float16).astype(np.float32) for n, a in model.variables.items()})
    check_retriever(folder, model)


@both
def test_an_encoder_without_its_head_begins_training(tmp_path, words, library):
    model = random_model(words, labels=2, lower_case=False, task_types=3)
    folder = write(tmp_path / "model", model, library, "ernie.")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})
    weights = convert.read_encoder(folder)
    assert not weights.lower_case and weights.config.task_types == 3
    assert weights.vocabulary == folder.resolve() / "vocab.txt"
    expected = reference.for_package(model.variables, model.sizes)
    assert weights.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(weights.arrays[name], array, err_msg=name)


@both
@pytest.mark.parametrize("lower", [None, True, False])
def test_a_folder_tells_whether_to_lower_case(tmp_path, words, library, lower):
    model = random_model(words, lower_case=lower is not False)
    folder = write(tmp_path / "model", model, library)
    if lower is not None:
        write_json(folder / "tokenizer_config.json", {"do_lower_case": lower})
    check_retriever(folder, model)


# Reading: classifiers ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("kind, task_types", [("bert", 0), ("ernie", 3)])
def test_a_cross_encoder_gives_the_oracles_scores(tmp_path, words, library, kind, task_types, labels):
    model = random_model(words, labels, task_types=task_types)
    folder = write(tmp_path / "model", model, library, f"{kind}.", model_type=kind)
    loaded, expected = rocketqa_paddle.load_model(folder, batch_size=4), model.scores()
    assert np.ptp(expected) > 0.1
    close(loaded.matching(QUERIES, TEXTS, TITLES), expected if labels == 1 else expit(expected))
    assert loaded.checkpoint.network.head == {1: "pooled_logit", 2: "classes"}[labels]
    assert loaded.checkpoint.lengths == {"pair": 64}


@both
def test_a_classifier_of_three_labels_is_refused(tmp_path, words, library):
    folder = write(tmp_path / "model", random_model(words, labels=3), library, "ernie.")
    with pytest.raises(ValueError, match="model: a classifier of 3 labels, expected 1 .* or 2"):
        convert.read(folder)


@both
def test_a_classifier_of_tokens_which_has_no_pooler_is_refused(tmp_path, words, library):
    model = random_model(words, labels=2)
    folder = write(tmp_path / "model", model, library, "bert.", model_type="bert")
    library.save(folder, {n: a for n, a in library.arrays(model, "bert.").items() if "pooler" not in n})
    with pytest.raises(ValueError, match=r"missing pooler.bias \[32\]\n  missing pooler.weight \[32, 32\]"):
        convert.read(folder)


@both
def test_a_real_pooler_that_looks_like_the_identity_is_kept(tmp_path, words, library):
    """Only the very identity that `write` makes is undone: a bias or another scale is a real pooler."""
    model = random_model(words, labels=1)
    for name, scale, bias in (("bias", 2.0**-16, 1e-3), ("scale", 2.0**-3, 0.0)):
        model.variables["pooled_fc.w_0"] = np.eye(32, dtype=np.float32) * np.float32(scale)
        model.variables["pooled_fc.b_0"] = np.full(32, bias, np.float32)
        checkpoint = convert.read(write(tmp_path / name, model, library, "bert.", model_type="bert"))
        assert checkpoint.network.head == "pooled_logit"
        close(scores(checkpoint), model.scores())


# Reading: what is refused -----------------------------------------------------------------------


@both
def test_arrays_that_do_not_fit_are_all_listed(tmp_path, words, library):
    model = random_model(words, labels=1)
    folder, held = write(tmp_path / "model", model, library, "ernie."), library.arrays(model, "ernie.")
    last = library.name_of("encoder_layer_2_post_ffn_layer_norm_bias")
    del held["ernie." + last.replace(".2.", ".1.")], held["classifier.bias"]
    held["ernie." + last] = np.zeros(32, np.float32)
    held["ernie.embeddings.adapter.weight"] = np.zeros((3, 4), np.float32)
    held["ernie.embeddings.task_type_embeddings.weight"] = np.zeros((3, 32), np.float32)
    linear = np.zeros((31, 48), np.float32)
    held["ernie." + library.name_of("encoder_layer_0_ffn_fc_0.w_0")] = library.turned(".w_0", linear)
    held["ernie.embeddings.position_embeddings.weight"] = np.zeros((63, 32), np.float32)
    library.save(folder, held)
    with pytest.raises(ValueError) as error:
        convert.read(folder)
    assert str(folder) in str(error.value)
    assert str(error.value).splitlines()[1:] == [
        "  missing ernie.layers.1.ffn_norm.bias [32]",
        "  missing output.bias [1]",
        "  left over ernie.embeddings.adapter.weight [3, 4]",
        f"  left over ernie.{last} [32]",
        "  left over ernie.task_embedding.weight [3, 32]",
        "  ernie.layers.0.ffn_in.weight is [31, 48], expected [32, 48]",
        "  ernie.position_embedding.weight is [63, 32], expected [64, 32]",
    ]


@both
@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"model_type": "roberta"}, "config.json: model_type 'roberta', expected 'bert' or 'ernie'"),
        ({"model_type": "ernie_m"}, "model_type 'ernie_m'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key', expected"),
        ({"use_task_id": True, "task_id": 1}, "config.json: task_id 1, expected 0"),
        ({"hidden_act": "gelu_new"}, "config.json: activation='gelu_new'"),
        ({"hidden_size": None}, "config.json: no 'hidden_size'"),
        ({"vocab_size": None}, "config.json: no 'vocab_size'"),
        ({"hidden_size": "48"}, "config.json: hidden_size='48'"),
        ({"num_attention_heads": 5}, "config.json: hidden_size=32 is not a multiple of num_heads=5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_config_of_another_network_is_refused(tmp_path, words, library, changes, problem):
    folder = write(tmp_path / "model", random_model(words), library, **changes)
    with pytest.raises(ValueError, match=problem):
        convert.read(folder)


@both
def test_a_vocabulary_larger_than_the_encoder_is_refused(tmp_path, words, library):
    folder = write(tmp_path / "model", random_model(words), library)
    write_words(folder / "vocab.txt", [*words, "more"])
    with pytest.raises(ValueError, match=f"vocab.txt: {len(words) + 1} tokens, but .* has {len(words)}"):
        convert.read(folder)


# Two towers -------------------------------------------------------------------------------------


@both
def test_half_a_vocabulary_is_refused(tmp_path, words, library):
    convert.write(KINDS["cls"](tmp_path / "own", words), tmp_path / "model", library.name)
    path = tmp_path / "model" / "vocab.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: len(words) // 2]))
    with pytest.raises(ValueError, match=r"vocab\.txt: .* but the encoder has .*: give the vocabulary"):
        convert.read(tmp_path / "model")


@both
def test_two_folders_side_by_side_are_two_towers(tmp_path, words, library):
    query, passage = (random_model(words, seed=seed, task_types=3) for seed in (1, 2))
    write(tmp_path / "both" / "query", query, library)
    write(tmp_path / "both" / "passage", passage, library, "ernie.")
    assert convert.find(tmp_path / "both").format == library.name
    assert not check_retriever(tmp_path / "both", query, passage).network.shared


def test_folders_named_query_and_passage_inside_a_model_are_no_towers(tmp_path, words):
    for inside in ("", "query", "passage"):
        write(tmp_path / "hf" / inside, random_model(words), HF)
    assert convert.read(tmp_path / "hf").network.shared


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
def test_two_folders_that_do_not_belong_together_are_refused(tmp_path, words, change, problem):
    changed = dict(change)
    order, pooling = changed.pop("words", slice(None)), changed.pop("pooling", "")
    lower, folder = changed.pop("lower_case", True), tmp_path / "both" / "passage"
    write(tmp_path / "both" / "query", random_model(words), HF)
    write(folder, random_model([*words[:5], *words[5:][order]], **changed), HF)
    write_json(folder / "tokenizer_config.json", {"do_lower_case": lower})
    if pooling:
        modules = [
            {"type": f"x.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "p"))
        ]
        write_json(folder / "modules.json", modules)
        write_json(folder / "p" / "config.json", {"pooling_mode": pooling})
    with pytest.raises(ValueError, match=problem):
        convert.read(tmp_path / "both")


# Writing ----------------------------------------------------------------------------------------


class Export:
    """A checkpoint of one kind, and the folder that it was written to for a library."""

    def __init__(self, kind: str, library: Library, folder: Path, words: Sequence[str]) -> None:
        self.checkpoint, self.library = KINDS[kind](folder / "own", words), library
        self.folder = folder / "model"
        convert.write(self.checkpoint, self.folder, library.name)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=[HF, NLP], ids=["huggingface", "paddlenlp"])
def export(request, kind, words, tmp_path_factory):
    return Export(kind, request.param, tmp_path_factory.mktemp("export"), words)


def assert_same(again: Checkpoint, checkpoint: Checkpoint) -> None:
    assert again.digest() == checkpoint.digest()
    assert describe(again.network) == describe(checkpoint.network)
    assert again.network.config == checkpoint.network.config
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    assert again.tokenizer.vocabulary == checkpoint.tokenizer.vocabulary
    assert again.lengths == checkpoint.lengths
    assert not again.network.training
    assert convert.largest_difference(checkpoint, again) == 0


def test_what_is_written_is_read_back_whole(export):
    assert convert.find(export.folder).format == export.library.name
    assert_same(convert.read(export.folder), export.checkpoint)


def test_our_settings_stand_under_a_key_of_our_own(export):
    checkpoint = export.checkpoint
    for config in sorted(export.folder.glob("**/config.json")):
        if "Pooling" in config.parent.name:
            continue
        kept = read_json(config)["rocketqa_paddle"]
        lengths = kept.pop("lengths")
        assert kept.pop("tokenizer") == checkpoint.tokenizer.settings
        if side := config.parent.name.removeprefix("model"):
            assert lengths == dict.fromkeys(("query", "passage"), checkpoint.lengths[side])
            assert kept == describe(checkpoint.network) | {"shared": True}
        else:
            assert lengths == checkpoint.lengths
            assert kept == describe(checkpoint.network)


def test_the_files_give_our_numbers_as_the_library_computes_them(export):
    """Texts are given to the library as `convert.notes` tells."""
    checkpoint, network, tokenizer = export.checkpoint, export.checkpoint.network, export.checkpoint.tokenizer

    def given(columns: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [tuple(t.replace(" ", "") if tokenizer.for_cn else t for t in row) for row in columns]

    if checkpoint.kind == "cross_encoder":
        model = written(export.folder, export.library)
        assert model.length == 33
        logits = model.logits(model.pair(*row) for row in given(PAIRS))
        assert logits.shape[1] == (2 if network.head == "classes" else 1)
        close(odds(logits), scores(checkpoint))
        return
    expected = vectors(checkpoint)
    for side, folder in towers(checkpoint, export.folder).items():
        model = written(folder, export.library)
        assert model.length == (33 if network.shared else checkpoint.lengths[side])
        pack = model.one if side == "query" or tokenizer.one_segment else model.pair
        rows = [pack(*row) for row in given([(query,) for query in QUERIES] if side == "query" else PASSAGES)]
        close(model.vectors(rows, network.pooling, network.normalize), expected[side])


@both
def test_a_head_without_pooler_is_written_with_one_that_changes_nothing(tmp_path, words, library):
    """tanh(x / 2^16) is x / 2^16 in single precision, and a power of two costs no digit."""
    checkpoint = KINDS["logit"](tmp_path / "own", words)
    convert.write(checkpoint, tmp_path / "model", library.name)
    held = written(tmp_path / "model", library).variables
    state = np.random.default_rng(3).normal(0, 3, (100, 32)).astype(np.float32)
    pooled = np.tanh(state @ held["pooled_fc.w_0"] + held["pooled_fc.b_0"])
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled * np.float32(2**16), state, rtol=3e-7)
    weight = checkpoint.network.output.weight.numpy()
    np.testing.assert_array_equal(held["_cls_out_w"], weight * np.float32(2**16))


@both
def test_a_head_whose_pooler_was_trained_elsewhere_keeps_it(tmp_path, words, library):
    """In the other library the identity is a pooler like any other; training it makes another head of it."""
    convert.write(KINDS["logit"](tmp_path / "own", words), tmp_path / "model", library.name)
    held, rng = library.load(tmp_path / "model"), np.random.default_rng(2)
    held["bert.pooler.dense.weight"] += rng.normal(0, 0.1, (32, 32)).astype(np.float32)
    held["classifier.weight"] *= np.float32(2.0**-16)
    library.save(tmp_path / "model", held)
    model = written(tmp_path / "model", library)
    close(scores(convert.read(tmp_path / "model")), model.scores())


@both
@pytest.mark.parametrize("section", [[1], "x", {"model_type": "dual_encoder"}, {"head": None}], ids=repr)
def test_a_section_of_ours_that_is_not_whole_is_named(tmp_path, words, library, section):
    convert.write(KINDS["classes"](tmp_path / "own", words), tmp_path / "model", library.name)
    config = read_json(tmp_path / "model" / "config.json")
    if section == {"head": None}:
        section = {key: value for key, value in config["rocketqa_paddle"].items() if key != "head"}
    write_json(tmp_path / "model" / "config.json", config | {"rocketqa_paddle": section})
    with pytest.raises(ValueError, match="the section rocketqa_paddle is not whole"):
        convert.read(tmp_path / "model")


@both
def test_ids_that_no_token_has_keep_their_place(tmp_path, library):
    """A vocabulary of `token TAB id` may have gaps; `vocab.txt` counts lines."""
    lines = ["[PAD]\t0", "[UNK]\t1", "[CLS]\t2", "[SEP]\t3", "a\t7", "b\t5"]
    checkpoint = dual(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"wxyz"], {"shared": True})
    checkpoint.tokenizer = type(checkpoint.tokenizer)(write_words(tmp_path / "gaps.txt", lines))
    convert.write(checkpoint, tmp_path / "model", library.name)
    found = (tmp_path / "model" / "vocab.txt").read_text().splitlines()
    assert [found[i] for i in (0, 1, 2, 3, 5, 7)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "b", "a"]
    assert len(found) == len(set(found)) == 8
    assert convert.read(tmp_path / "model").tokenizer.encode(["a b"]) == [[7, 5]]


@both
def test_writing_replaces_a_model_but_no_other_folder(tmp_path, words, library):
    one, pair, two = (KINDS[kind](tmp_path / "own", words) for kind in ("cls", "logit", "two-towers"))
    for checkpoint in (one, pair, one, two, two):
        name = "towers" if checkpoint is two else "model"
        convert.write(checkpoint, tmp_path / name, library.name)
        assert convert.read(tmp_path / name).digest() == checkpoint.digest()
    write_words(tmp_path / "work" / "thesis.txt", ["years"])
    for checkpoint in (one, two):
        with pytest.raises(ValueError, match="work holds thesis.txt, which would be lost"):
            convert.write(checkpoint, tmp_path / "work", library.name)
    assert contents(tmp_path / "work") == {"thesis.txt": b"years\n"}
    write_json(tmp_path / "site" / "config.json", {"theme": "dark"})
    with pytest.raises(ValueError, match="site holds config.json, but is no model that this project wrote"):
        convert.write(one, tmp_path / "site", library.name)


@both
def test_a_sentence_piece_vocabulary_cannot_be_written(tmp_path, words, library, monkeypatch):
    checkpoint = KINDS["cls"](tmp_path / "own", words)
    monkeypatch.setattr(
        "rocketqa_paddle.networks.tokenization.SentencePieces", type(checkpoint.tokenizer._pieces)
    )
    with pytest.raises(ValueError, match="is a SentencePiece model, expected a vocabulary of word pieces"):
        convert.write(checkpoint, tmp_path / "model", library.name)
    assert not (tmp_path / "model").exists()


# Notes and differences --------------------------------------------------------------------------

CUT, PAIR = "queries are cut there at 33 tokens, not at 24", "a passage is a pair there"
NOTES = {  # for both libraries, and for PaddleNLP alone
    "cls": ([CUT, PAIR], []),
    "mean": ([CUT, "not divided by the temperature 4.0", PAIR], ["pool yourself there: mean"]),
    "one-segment": (
        [CUT, "not divided by the temperature 0.05"],
        ["pool yourself there: mean, then unit length"],
    ),
    "for-cn": ([CUT, PAIR], ["pool yourself there: mean, then unit length", "(for_cn)"]),
    "tasks": (
        [CUT, "not divided by the temperature 2.0", PAIR],
        ["pool yourself there: cls, then unit length"],
    ),
    "two-towers": (["two towers: the folders query and passage", PAIR], []),
    "logit": (["it has no pooler; the one written there is the identity in float32"], []),
    "classes": ([], ["(for_cn)"]),
    "pooled-logit": ([], []),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_tell_what_is_different_in_the_other_library(tmp_path, words, name):
    checkpoint, (common, more) = KINDS[name](tmp_path / "own", words), NOTES[name]
    for to, expected in {"huggingface": common, "paddlenlp": common + more}.items():
        found = convert.notes(checkpoint, to)
        assert len(found) == len(expected), found
        assert all(part in note for note, part in zip(found, expected, strict=True)), found
    assert convert.notes(checkpoint, "native") == convert.notes(checkpoint, "reference") == []


def test_a_model_that_paddlenlp_computes_with_another_epsilon_is_read_back_whole_and_noted(tmp_path, words):
    checkpoint = dual(tmp_path, words, {"shared": True}, {**TASKS, "epsilon": 1e-5})
    assert (
        "PaddleNLP computes ERNIE with epsilon 1e-12: its numbers"
        in convert.notes(checkpoint, "paddlenlp")[-1]
    )
    convert.write(checkpoint, tmp_path / "nlp", "paddlenlp")
    assert_same(convert.read(tmp_path / "nlp"), checkpoint)


def test_lengths_that_are_equal_need_no_note(tmp_path, words):
    checkpoint = KINDS["one-segment"](tmp_path / "own", words)
    checkpoint.lengths["query"] = checkpoint.lengths["passage"]
    assert [note for note in convert.notes(checkpoint, "huggingface") if "cut" in note] == []


@pytest.mark.parametrize("name", ["mean", "classes"])
def test_the_largest_difference_is_that_of_the_outputs(tmp_path, words, name):
    """A bias at the end moves a score or an element by itself, which a sum or a mean would not show."""
    one, other = (KINDS[name](tmp_path / "own", words) for _ in range(2))
    assert convert.largest_difference(one, other) == 0
    if name == "classes":
        bias, move, expected = other.network.output.bias, np.array([0.25, 1.0]), 0.75  # that of the odds
    else:
        bias, move, expected = other.network.query.layers[-1].ffn_norm.bias, np.zeros(32), 0.5
        move[5] = -0.5
    bias.set_value((bias.numpy() + move).astype(np.float32))
    assert convert.largest_difference(one, other) == pytest.approx(expected, abs=1e-5)
    assert convert.largest_difference(other, one) == pytest.approx(expected, abs=1e-5)
    bias.set_value(np.full(bias.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="vocab.txt computes NaN or infinity"):
        convert.largest_difference(one, other)


def test_the_largest_difference_sees_both_towers(tmp_path, words):
    for side in ("query", "passage"):
        one, other = (KINDS["two-towers"](tmp_path / "own", words) for _ in range(2))
        bias = getattr(other.network, side).layers[-1].ffn_norm.bias
        bias.set_value(bias.numpy() + np.float32(0.5))
        assert convert.largest_difference(one, other) == pytest.approx(0.5, abs=1e-5)


def test_models_of_two_kinds_have_no_difference(tmp_path, words):
    with pytest.raises(ValueError):
        convert.largest_difference(*(KINDS[kind](tmp_path / kind, words) for kind in ("cls", "classes")))


# All formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["native", "reference", "paddlenlp", "huggingface"])
@pytest.mark.parametrize("name", ["dual", "shared", "logit", "classes"])
def test_a_model_is_found_and_read_in_every_format(tmp_path, tokenizer, name, to):
    make = toy.dual if name in ("dual", "shared") else toy.cross
    checkpoint = make(tokenizer, **({"shared": name == "shared"} if make is toy.dual else {"head": name}))
    checkpoint.network.eval()
    convert.write(checkpoint, tmp_path / "model", to)
    assert convert.find(tmp_path / "model").format == to
    again = convert.read(tmp_path / "model", kind=checkpoint.kind)
    assert again.digest() == checkpoint.digest()
    np.testing.assert_array_equal(outputs(again), outputs(checkpoint))
    other = {"dual_encoder": "cross_encoder", "cross_encoder": "dual_encoder"}[checkpoint.kind]
    with pytest.raises(ValueError, match=f"model is a {checkpoint.kind}, expected a {other}"):
        convert.read(tmp_path / "model", kind=other)


def test_a_config_file_stands_for_its_folder(tmp_path, words):
    folder = write(tmp_path / "hf", random_model(words), HF)
    assert convert.find(folder / "config.json") == convert.find(folder)
    with pytest.raises(ValueError, match="vocab.txt is a file, expected the JSON"):
        convert.find(folder / "vocab.txt")


def test_a_folder_without_model_is_told_apart_from_none(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no model there. Expected a folder with config.json"):
        convert.find(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere': no such file or folder"):
        convert.find(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="did you mean v1_marco_de"):
        convert.find("v1_marco_ed")
