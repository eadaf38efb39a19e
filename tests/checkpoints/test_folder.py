"""Checkpoint folders: saved whole or not at all, read back bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
import toy
from foreign import contents, outputs
from safetensors.numpy import load_file, save_file

from rocketqa_paddle import checkpoints
from rocketqa_paddle.checkpoints import folder as checkpoint_folder
from rocketqa_paddle.checkpoints import initial
from rocketqa_paddle.checkpoints.formats.weights import EncoderWeights
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer
from rocketqa_paddle.runtime import storage

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


def test_an_error_while_writing_leaves_the_old_folder_whole(saved):
    before = contents(saved)
    with pytest.raises(KeyboardInterrupt), storage.replacing(saved, marker="config.json") as new:
        (new / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert contents(saved) == before
    checkpoints.load(saved)


def test_a_failed_save_leaves_the_old_folder_whole(saved, tokenizer, monkeypatch):
    before = contents(saved)

    def disk_full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint_folder, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(toy.dual(tokenizer), saved)
    assert contents(saved) == before


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with (
        pytest.raises(ValueError, match="work holds other files"),
        storage.replacing(tmp_path / "work", marker="config.json"),
    ):
        raise AssertionError("the block must not run")
    assert contents(tmp_path / "work") == {"thesis.txt": b"years"}


def test_leftovers_of_a_failed_save_do_not_reach_the_next(saved):
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
def test_a_cut_off_around_the_renames_loses_nothing(saved, tokenizer, number, then):
    before, other = contents(saved), toy.dual(tokenizer)
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


def test_a_cut_off_after_the_renames_keeps_the_new_folder(saved, tokenizer):
    new = toy.dual(tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.shutil, "rmtree", lambda *args, **kwargs: None)
        checkpoints.save(new, saved)
    assert (saved.parent / ".saved.old").exists()
    np.testing.assert_array_equal(outputs(checkpoints.load(saved)), outputs(new))
    checkpoints.save(new, saved)
    assert not (saved.parent / ".saved.old").exists()


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
