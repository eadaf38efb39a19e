"""Checkpoint folders: saved whole or not at all, read back bit by bit."""

from __future__ import annotations

import itertools
import os

import numpy as np
import paddle
import pytest
import toy
from foreign import contents, outputs, read_json, write_json
from kills import killed_at
from safetensors.numpy import load_file, save_file

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import folder as checkpoint_folder
from rocketqa_paddle.checkpoints import initial
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer

# Round trip -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, settings",
    [
        (toy.dual, {}),
        (toy.dual, {"shared": True, "pooling": "mean", "normalize": True, "temperature": 0.05}),
        (toy.cross, {"head": "logit"}),
        (toy.cross, {"head": "classes"}),
    ],
    ids=["dual", "shared", "logit", "classes"],
)
def test_a_checkpoint_comes_back_bit_by_bit(tmp_path, vocab, make, settings):
    checkpoint = make(Tokenizer(vocab, for_cn=True, lower_case=False), **settings)
    checkpoint.network.eval()
    checkpoints.save(checkpoint, tmp_path / "runs" / "one")
    paddle.seed(99)
    again = checkpoints.load(tmp_path / "runs" / "one")

    assert type(again.network) is type(checkpoint.network)
    assert again.network.config == checkpoint.network.config
    assert again.lengths == checkpoint.lengths
    assert (again.tokenizer.for_cn, again.tokenizer.lower_case) == (True, False)
    assert not again.network.training
    for name, value in settings.items():
        assert getattr(again.network, name) == value
    before, after = checkpoint.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    for name, parameter in before.items():
        np.testing.assert_array_equal(after[name].numpy(), parameter.numpy(), err_msg=name)
    np.testing.assert_array_equal(outputs(again), outputs(checkpoint))


def test_a_shared_tower_is_saved_once_and_stays_shared(tmp_path, tokenizer):
    for shared in (True, False):
        checkpoints.save(toy.dual(tokenizer, shared=shared), tmp_path / str(shared))
    one, two = (load_file(tmp_path / str(shared) / "model.safetensors") for shared in (True, False))
    assert len(two) == 2 * len(one)
    assert {name.split(".")[0] for name in one} == {"query"}
    assert checkpoints.load(tmp_path / "True").network.shared


def test_a_folder_holds_four_plain_files_and_nothing_is_unpickled(saved, monkeypatch):
    assert contents(saved).keys() == {"config.json", "model.safetensors", "vocab.txt", "README.md"}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for module in ("pickle.load", "pickle.loads", "pickle.Unpickler", "paddle.load", "numpy.load"):
        monkeypatch.setattr(module, refuse)
    checkpoints.load(saved)


def test_the_card_tells_sizes_and_what_it_is_given(tmp_path, tokenizer):
    checkpoints.save(toy.cross(tokenizer), tmp_path / "one", card="RR@10 0.5 on **dev**")
    card = (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Cross encoder\n")
    assert "2 layers, 16 hidden units" in card
    assert "RR@10 0.5 on **dev**" in card


def test_loading_for_training_sets_dropout_and_recompute(saved):
    network = checkpoints.load(saved, dropout=0.25, use_recompute=True).network
    assert network.query.dropout.p == 0.25
    assert network.query.layers[0].attention.dropout == 0.25
    assert network.passage.use_recompute


# Digests ----------------------------------------------------------------------------------------


def test_the_digest_names_the_parameters(tmp_path, tokenizer):
    one, other = toy.dual(tokenizer), toy.dual(tokenizer)
    for name, checkpoint in (("a", one), ("b", one), ("c", other)):
        checkpoints.save(checkpoint, tmp_path / name, card=name)
    checkpoints.save(checkpoints.load(tmp_path / "a"), tmp_path / "again")
    digests = [checkpoints.load(tmp_path / name).digest() for name in ("a", "b", "again", "c")]
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert len(digests[0]) == 16 and int(digests[0], 16) >= 0


def counted(network: DualEncoder | CrossEncoder) -> DualEncoder | CrossEncoder:
    """A network whose every parameter counts up from 0 in sixteenths, which float32 holds exactly."""
    arrays = parameters.to_arrays(network).items()
    numbers = {n: np.arange(a.size, dtype=np.float32).reshape(a.shape) / 16 for n, a in arrays}
    parameters.load_arrays(network, numbers, "numbers")
    return network


def test_digests_stay_the_same_from_version_to_version(tmp_path):
    """Indexes and runs on the disk name models by them."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "moon"]) + "\n")
    tokenizer, sizes = Tokenizer(tmp_path / "vocab.txt"), ErnieConfig(6, 4, 1, 2, 8, 16, 2)
    dual = Checkpoint(counted(DualEncoder(sizes, temperature=0.5)), tokenizer, {"query": 8, "passage": 16})
    cross = Checkpoint(counted(CrossEncoder(sizes, head="classes")), tokenizer, {"pair": 16})
    assert dual.digest() == initial.fingerprint(dual) == "28e9bd1b53a26d55"
    assert cross.digest() == initial.fingerprint(cross) == "031ca72a9d976734"

    encoder = parameters.to_arrays(dual.network.query)
    head = {n: a for n, a in parameters.to_arrays(cross.network).items() if not n.startswith("ernie.")}
    plain = EncoderWeights(sizes, encoder, tokenizer.path)
    classifier = EncoderWeights(sizes, encoder, tokenizer.path, False, "classes", head)
    assert initial.fingerprint(plain) == "2b2be66a4ba0f895"
    assert initial.fingerprint(classifier) == "642b0449fe268950"


# Whole or not at all ----------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_folder_whole(saved, tokenizer, monkeypatch):
    before = contents(saved)

    def disk_full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint_folder, "save_arrays", disk_full)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(toy.dual(tokenizer), saved)
    assert contents(saved) == before


def test_a_folder_of_other_things_is_not_replaced(tmp_path, tokenizer):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"work holds thesis\.txt, which would be lost"):
        checkpoints.save(toy.dual(tokenizer), tmp_path / "work")
    assert contents(tmp_path / "work") == {"thesis.txt": b"years"}


def test_a_death_at_any_moment_of_a_save_leaves_one_model_whole(tmp_path, tokenizer):
    old, new = toy.dual(tokenizer), toy.dual(tokenizer)
    found = set()
    for change in itertools.count():
        folder = tmp_path / str(change) / "saved"
        checkpoints.save(old, folder)
        died = killed_at(change, lambda folder=folder: checkpoints.save(new, folder))
        found.add(checkpoints.load(folder).digest())
        checkpoints.save(old, folder)
        assert {path.name for path in folder.parent.iterdir()} == {"saved"}
        if not died:
            break
    assert found == {old.digest(), new.digest()}


def test_another_user_may_read_a_model(tmp_path, tokenizer):
    before = os.umask(0o022)
    try:
        checkpoints.save(toy.dual(tokenizer), tmp_path / "saved")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {0o644}


def test_a_relative_folder_is_as_good_as_any(saved, tokenizer, monkeypatch):
    monkeypatch.chdir(saved.parent)
    checkpoints.save(toy.dual(tokenizer), "plain")
    assert checkpoints.load("plain").lengths == {"query": 12, "passage": 20}
    monkeypatch.chdir(saved)
    assert checkpoints.load(".").lengths == {"query": 12, "passage": 20}


def test_a_link_to_a_folder_can_be_replaced_twice(saved, tokenizer):
    link = saved.with_name("link")
    link.symlink_to(saved)
    for _ in range(2):
        new = toy.dual(tokenizer)
        checkpoints.save(new, link)
        np.testing.assert_array_equal(outputs(checkpoints.load(link)), outputs(new))


# What is refused --------------------------------------------------------------------------------


def test_no_checkpoint_there(tmp_path):
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
def test_a_config_that_cannot_be_read_is_named(saved, text, problem):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"saved/config.json: .*{problem}"):
        checkpoints.load(saved)


def test_the_wrong_kind_is_refused(saved):
    checkpoints.load(saved, kind="dual_encoder")
    with pytest.raises(ValueError, match="saved is a dual_encoder, expected a cross_encoder"):
        checkpoints.load(saved, kind="cross_encoder")


def test_half_a_vocabulary_is_noticed(saved):
    path = saved / "vocab.txt"
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[: len(lines) // 2], [*lines[:-2], lines[-1], lines[-2]]):
        path.write_text("".join(changed))
        problem = (
            rf"vocab.txt: {len(changed)} tokens \(.*\), but the model was saved with {len(lines)} tokens"
        )
        with pytest.raises(ValueError, match=problem):
            checkpoints.load(saved)
    path.write_text("".join(lines))
    checkpoints.load(saved)


def test_a_checkpoint_without_a_record_of_its_vocabulary_is_read(saved):
    """As this package wrote it before there was one, and as a person makes it who changes the vocabulary."""
    config = read_json(saved / "config.json")
    del config["vocabulary"]
    write_json(saved / "config.json", config)
    lines = (saved / "vocab.txt").read_text().splitlines(keepends=True)
    (saved / "vocab.txt").write_text("".join(lines[:-1]))
    assert len(checkpoints.load(saved).tokenizer) == len(lines) - 1


def test_what_a_version_without_the_record_reads_is_still_there(saved):
    """It makes the tokenizer of all that is under `tokenizer`, and reads no other key but these."""
    config = read_json(saved / "config.json")
    assert config["format_version"] == 1
    assert config["tokenizer"].keys() == {"file", "lower_case", "for_cn", "one_segment"}
    assert config.keys() >= {"model_type", "encoder", "lengths"}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"model_type": "bert"}, "model_type 'bert', expected 'dual_encoder' or 'cross_encoder'"),
        ({"encoder": None}, "encoder is None, expected an object"),
        ({"encoder": {}}, "no vocab_size among the encoder settings"),
        ({"tokenizer": []}, r"tokenizer is \[\], expected an object"),
        ({"tokenizer": {}}, "file None, expected one of vocab.txt, spm.model"),
        (
            {"tokenizer": {"file": "../vocab.txt"}},
            "file '../vocab.txt', expected one of vocab.txt, spm.model",
        ),
        ({"tokenizer": {"file": "vocab.txt", "cased": 1}}, "unknown tokenizer settings .'cased'., expected"),
        ({"tokenizer": {"file": "vocab.txt", "for_cn": "no"}}, "for_cn is 'no', expected true or false"),
        ({"lengths": [12, 20]}, r"lengths is \[12, 20\], expected an object"),
        ({"lengths": {"query": 12, "passage": "20"}}, "passage length '20', expected a whole number"),
        ({"temperature": None}, "temperature=None, expected a finite number"),
        ({"vocabulary": 3}, "vocabulary is 3, expected an object"),
        ({"vocabulary": {"tokens": [[9] * 999]}}, "but the model was saved with"),
    ],
)
def test_a_wrong_value_in_a_config_is_named(saved, changes, problem):
    write_json(saved / "config.json", read_json(saved / "config.json") | changes)
    with pytest.raises(ValueError, match=rf"saved.*{problem}") as error:
        checkpoints.load(saved)
    assert len(str(error.value)) < 800


def test_objects_inside_one_another_are_refused(saved):
    (saved / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ValueError, match="config.json: too many objects or lists inside one another"):
        checkpoints.load(saved)


def test_parameters_that_do_not_fit_are_all_listed(saved):
    arrays = load_file(saved / "model.safetensors")
    del arrays["query.norm.bias"]
    arrays["query.extra"] = np.zeros(3, np.float32)
    arrays["passage.norm.weight"] = np.zeros(7, np.float32)
    save_file(arrays, saved / "model.safetensors")
    with pytest.raises(ValueError) as error:
        checkpoints.load(saved)
    text = str(error.value)
    assert "missing query.norm.bias [16]" in text
    assert "left over query.extra [3]" in text
    assert "passage.norm.weight is [7], expected [16]" in text
    assert text.count("\n") == 3


def test_parameters_that_do_not_fit_change_nothing(tokenizer):
    network = toy.dual(tokenizer).network
    arrays = {name: array + 1 for name, array in parameters.to_arrays(network).items()}
    before = network.query.norm.bias.numpy().copy()
    with pytest.raises(ValueError, match="left over x"):
        parameters.load_arrays(network, {**arrays, "x": np.zeros(1)}, "here")
    np.testing.assert_array_equal(network.query.norm.bias.numpy(), before)
