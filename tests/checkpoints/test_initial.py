"""Initial checkpoints: whole checkpoints, encoders of other libraries, and sizes from scratch."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from foreign import HF, QUERIES, TEXTS, close, outputs, random_model, vectors, write
from paddle import nn

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import convert, initial
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.networks.encoders import Checkpoint


def assert_same_parameters(one: nn.Layer, other: nn.Layer) -> None:
    for name, parameter in other.state_dict().items():
        np.testing.assert_array_equal(one.state_dict()[name].numpy(), parameter.numpy(), err_msg=name)


# Checkpoints ------------------------------------------------------------------------------------


def test_it_may_be_a_checkpoint(saved, tmp_path):
    weights = initial.read(str(saved), [], tmp_path)
    assert isinstance(weights, Checkpoint)
    retriever = initial.retriever(weights, 12, 30, dropout=0.1, pooling="mean")
    assert retriever.lengths == {"query": 12, "passage": 30}
    assert retriever.network.pooling == "mean"
    assert_same_parameters(retriever.network, weights.network)


def test_one_shared_tower_may_become_two(tokenizer):
    weights = toy.dual(tokenizer, shared=True)
    network = initial.retriever(weights, 8, 20, shared=False).network
    assert not network.shared
    for tower in (network.query, network.passage):
        assert_same_parameters(tower, weights.network.query)


def test_two_towers_cannot_become_one(tokenizer):
    with pytest.raises(ValueError, match="init has two towers, but shared=true"):
        initial.retriever(toy.dual(tokenizer), 8, 20, shared=True)


def test_a_reranker_keeps_the_head_of_its_initial_checkpoint(tokenizer):
    weights = toy.cross(tokenizer, head="classes")
    network = initial.reranker(weights, 40, head="classes").network
    np.testing.assert_array_equal(network.output.weight.numpy(), weights.network.output.weight.numpy())
    with pytest.raises(ValueError, match="init has the head 'classes', but 'logit' is asked for"):
        initial.reranker(weights, 40, head="logit")


def test_a_checkpoint_of_the_other_kind_is_refused(tokenizer):
    with pytest.raises(ValueError, match="init is a DualEncoder, expected a CrossEncoder"):
        initial.reranker(toy.dual(tokenizer), 40)
    with pytest.raises(ValueError, match="init is a CrossEncoder, expected a DualEncoder"):
        initial.retriever(toy.cross(tokenizer), 8, 20)


def test_a_folder_whose_replacement_was_cut_off_is_found(saved, tmp_path):
    before = outputs(checkpoints.load(saved))
    saved.rename(saved.with_name(".saved.rocketqa-old"))
    weights = initial.read(str(saved), [], tmp_path)
    assert isinstance(weights, Checkpoint)
    np.testing.assert_array_equal(outputs(weights), before)


@pytest.mark.parametrize(
    "text, problem", [("{", "not JSON"), ('{"format_version": 99}', "format 99.*upgrade")]
)
def test_a_broken_checkpoint_is_not_taken_for_a_foreign_one(saved, tmp_path, text, problem):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        initial.read(str(saved), [], tmp_path)


# Other libraries --------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["huggingface", "paddlenlp"])
@pytest.mark.parametrize("head", ["logit", "classes", "pooled_logit"])
def test_a_classifier_of_another_library_keeps_its_head(tmp_path, tokenizer, head, to):
    trained = toy.cross(tokenizer, head=head, dropout=0.0)
    convert.write(trained, tmp_path / "model", to)
    weights = initial.read(str(tmp_path / "model"), [], tmp_path)
    again = initial.reranker(weights, 28, head=head, dropout=0.0)
    np.testing.assert_array_equal(outputs(again), outputs(trained))
    other = "classes" if head == "logit" else "logit"
    with pytest.raises(ValueError, match=f"init has the head '{head}', but '{other}' .*: set head to {head}"):
        initial.reranker(weights, 24, head=other)
    retriever = initial.retriever(weights, 8, 20).network  # which needs the encoder alone
    assert_same_parameters(retriever.query, trained.network.ernie)


def test_an_encoder_of_hugging_face_may_become_either(tmp_path, words):
    model = random_model(words)
    folder = write(tmp_path / "hf", model, HF)
    weights = initial.read(str(folder), [], tmp_path / "work")
    close(vectors(initial.retriever(weights, 64, 64))["query"], model.queries())
    reranker = initial.reranker(weights, 24)
    expected = model.variables["pre_encoder_layer_norm_scale"]
    np.testing.assert_array_equal(reranker.network.ernie.norm.weight.numpy(), expected)
    assert reranker.tokenizer.lower_case
    assert not (tmp_path / "work").exists()

    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not initial.reranker(initial.read(str(folder), [], tmp_path), 24).tokenizer.lower_case


def test_an_encoder_that_lacks_an_array_is_refused(tmp_path, words):
    model = random_model(words)
    folder = write(tmp_path / "hf", model, HF)
    arrays = HF.arrays(model)
    del arrays["encoder.layer.1.output.dense.bias"]
    HF.save(folder, arrays)
    with pytest.raises(ValueError, match=r"missing layers.1.ffn_out.bias \[32\]"):
        initial.retriever(initial.read(str(folder), [], tmp_path), 8, 20)


def test_a_vocabulary_larger_than_the_encoder_is_refused(tmp_path, words):
    folder = write(tmp_path / "hf", random_model(words, vocab=50), HF)
    with pytest.raises(ValueError, match=f"vocab.txt: {len(words)} tokens, but the encoder has 50"):
        initial.retriever(initial.read(str(folder), [], tmp_path), 8, 20)


def test_it_may_lie_in_an_installed_package_which_is_not_imported(tmp_path, words, monkeypatch):
    write(tmp_path / "site" / "made_weights" / "en", random_model(words), HF)
    (tmp_path / "site" / "made_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert initial.read("package:made_weights/en", [], tmp_path).config.vocab_size == len(words)
    with pytest.raises(FileNotFoundError, match="package:made_weights/fr: .* has no folder 'fr'"):
        initial.read("package:made_weights/fr", [], tmp_path)
    with pytest.raises(FileNotFoundError, match="not installed .*; pip install no-such-weights"):
        initial.read("package:no_such_weights/en", [], tmp_path)


def test_an_unknown_name_is_answered_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"init: 'ernie-9': no such file .*paddlenlp.*: tiny, mini"):
        initial.read("ernie-9", [], tmp_path)


# From scratch -----------------------------------------------------------------------------------


def test_a_size_from_scratch_trains_its_vocabulary_once(tmp_path):
    weights = initial.read("tiny", (f"{text} again" for text in [*QUERIES, *TEXTS]), tmp_path / "work")
    assert isinstance(weights, EncoderWeights)
    assert (weights.config.hidden_size, weights.config.num_layers, weights.arrays) == (64, 2, {})
    assert weights.vocabulary == tmp_path / "work" / "vocab.txt"
    retriever = initial.retriever(weights, 8, 20)
    assert weights.config.vocab_size == len(retriever.tokenizer)
    assert not any("[UNK]" in retriever.tokenizer.tokenize(text) for text in TEXTS)
    assert np.abs(outputs(retriever)).max() > 0

    def no_corpus() -> None:
        raise AssertionError("the corpus was read again")
        yield

    assert initial.read("tiny", no_corpus(), tmp_path / "work").config == weights.config


def test_chinese_text_loses_its_spaces(vocab, tiny_config):
    weights = EncoderWeights(tiny_config, {}, vocab)
    for checkpoint in (
        initial.retriever(weights, 8, 20, for_cn=True),
        initial.reranker(weights, 20, for_cn=True),
    ):
        assert checkpoint.tokenizer.tokenize("a b") == checkpoint.tokenizer.tokenize("ab")
