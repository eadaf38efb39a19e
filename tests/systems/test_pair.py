"""PAIR on the toy collection: which data and which loss each of its stages trains with."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import running
import toy
from running import change, kill_after, stop_at, train

from rocketqa_paddle import checkpoints, contrastive, losses
from rocketqa_paddle.networks import forward, parameters
from rocketqa_paddle.runs import trainings
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import RetrieverSettings
from rocketqa_paddle.systems.pair.settings import PretrainingSettings

STEPS = ["teacher_retriever", "teacher_reranker", "pretraining", "finetuning"]
TITLES = {
    "teacher_retriever": "teacher",
    "pretraining": "stage 1 (pre-training)",
    "finetuning": "stage 2 (fine-tuning)",
}


@pytest.fixture(scope="module")
def seen():
    """Filled by `whole`: its trainers by step, and the weight of the passage-centric loss in each."""
    return {"alpha": []}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, seen):
    """The settings of a run that nothing interrupted."""
    settings = running.pair(tmp_path_factory.mktemp("whole") / "run", data)
    in_batch = contrastive.in_batch

    def in_batch_spy(retriever, alpha=0.0, **keywords):
        seen["alpha"].append(alpha)
        return in_batch(retriever, alpha, **keywords)

    in_batch_spy.__qualname__ = in_batch.__qualname__  # it is told by its name
    with pytest.MonkeyPatch.context() as patch, running.spied() as trainers:
        patch.setattr(contrastive, "in_batch", in_batch_spy)
        train(settings)
    seen.update({name.split()[0]: trainer for name, trainer in trainers.items()})
    return settings


def test_the_run_folder_is_whole(whole):
    found = {f"{step}/hits.{split}" for step in TITLES for split in ("dev", "test")}
    found |= {f"teacher_retriever/hits.train.{name}" for name in ("labelled", "unlabelled")}
    scored = "teacher_reranker/scored.teacher_retriever.train"
    found |= {f"{scored}.labelled", f"{scored}.unlabelled", "teacher_reranker/reranked.teacher_retriever.dev"}
    trained = {step: ["retriever" if step in TITLES else "reranker"] for step in STEPS}
    running.check_files(whole, trained, found, ignored=r"teacher_reranker/reranked\.\w+\.(dev|test)\..*")
    running.check_best(whole)


def test_the_tables_hold_what_the_runs_give(whole):
    report = running.text(whole, "report.md")
    for split, shown in {"dev": running.text(whole, "steps.md"), "test": report}.items():
        files = {f"retriever, {title}": f"{step}/hits.{split}.tsv" for step, title in TITLES.items()}
        expected = running.measured(whole, files, split)
        assert {name: values for name, values in running.table(shown).items() if name in expected} == expected
    assert "re-ranker over teacher" in running.table(report)


def test_both_similarities_in_pretraining_alone(seen, whole):
    """The teacher, pre-training, fine-tuning."""
    assert seen["alpha"] == [0, 0.3, 0]


def test_fine_tuning_goes_on_from_pretraining(whole, seen):
    initial = parameters.to_arrays(running.rehearse(whole)[0].initial_retriever().value().network)
    for step in ("teacher_retriever", "pretraining"):
        arrays = seen[step].began_with["retriever"]
        assert all(np.array_equal(arrays[key], initial[key]) for key in initial)
    running.check_weights(seen["finetuning"].began_with["retriever"], place(whole, "pretraining"))
    assert len(set(running.digests(whole, "retriever").values())) == 3


def place(settings, step) -> Path:
    return Path(settings.output) / step / "retriever"


def test_each_stage_has_its_data(whole, seen):
    """Pre-training has pseudo labels even for labelled queries; fine-tuning has their own."""
    run, _ = running.rehearse(whole)
    labelled, unlabelled = run.labelled.queries.keys(), run.unlabelled.queries.keys()
    first, second = seen["pretraining"].examples, seen["finetuning"].examples
    assert {group.source for group in first} == {"pseudo"}
    pseudo = {group.query.id for group in first}
    assert pseudo & labelled and pseudo & unlabelled and pseudo <= labelled | unlabelled
    sources = Counter((group.source, group.query.id in labelled) for group in second)
    assert sources == {("denoised", True): 25, ("pseudo", False): len(pseudo & unlabelled)}
    for group in first + second:
        positive, *negatives = [passage.id for passage in group.passages]
        judged = run.labelled.qrels.get(group.query.id, {})
        answers = {i for i, relevance in judged.items() if relevance > 0}
        assert not answers & set(negatives)
        assert positive in answers or group.source == "pseudo"
    cards = [running.text(whole, f"{step}/retriever/README.md") for step in STEPS[2:]]
    assert f"{len(first)} groups ({len(first)} pseudo)" in cards[0]
    assert f"(25 denoised, {len(second) - 25} pseudo)" in cards[1]


def test_pretraining_without_unlabelled_queries(whole, tmp_path):
    """The teachers do not know of them."""
    settings = change(running.copied(whole, tmp_path / "run"), "data", unlabelled=None)
    settings = change(settings, "pretraining", batch_size=4, steps=1)
    with running.spied() as trainers:
        train(settings)
    assert list(trainers) == ["pretraining retriever", "finetuning retriever"]
    assert {group.source for group in trainers["pretraining retriever"].examples} == {"pseudo"}
    assert "on 25 groups (25 denoised)" in running.text(settings, "finetuning/retriever/README.md")
    running.check_best(settings)


def test_two_towers_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="retriever.shared=true"):
        running.pair(tmp_path, data, retriever=RetrieverSettings(init="tiny", shared=False))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_weight_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        PretrainingSettings(alpha=alpha)


# Stopped, started again, changed ------------------------------------------------------------------


def test_starting_again_computes_nothing(whole):
    running.check_again(whole)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop_at(losses, "pair", 3), id="SIGTERM in pre-training"),
        pytest.param(kill_after(trainings.Training, "fit", 3), id="killed when pre-training is saved"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, stop):
    """Pre-training is by LAMB: parameters, moments and their powers come back."""
    running.check_stop(whole, tmp_path / "run", stop)


FINISHED = dict.fromkeys(STEPS, "finished")
FROM_PRETRAINING = FINISHED | {"pretraining": "changed", "finetuning": "changed"}


@pytest.mark.parametrize(
    ("path", "values", "steps", "reason"),
    [
        ("pretraining", {"alpha": 0.2}, FROM_PRETRAINING, "loss.alpha was 0.3, is now 0.2"),
        ("denoising", {"positive_above": 0.4}, FROM_PRETRAINING, "values.above was 0.31, is now 0.4"),
        ("finetuning", {"steps": 5}, FINISHED | {"finetuning": "changed"}, "steps was 4, is now 5"),
        ("retriever", {"recompute": True}, FINISHED, None),
    ],
)
def test_a_change_reaches_what_it_decides_and_no_more(whole, path, values, steps, reason):
    running.check_change(whole, path, values, steps, reason)


# A teacher from elsewhere -------------------------------------------------------------------------


def test_a_finished_retriever_is_the_teacher(whole, tmp_path, monkeypatch, capsys):
    """Its index is used as it is; pre-training begins with the run's initial checkpoint all the same."""
    given, index = tmp_path / "given" / "retriever", tmp_path / "given" / "index"
    shutil.copytree(place(whole, "finetuning"), given)
    teacher = checkpoints.load(given)
    CorpusIndex(teacher, toy.collection().passages, progress="").save(index, teacher.digest())
    settings = running.begun(whole, tmp_path / "run")
    settings = change(settings, "teacher_retriever", init=str(given), queries=0)
    settings = change(change(settings, "data", unlabelled=None), "pretraining", batch_size=4)
    encoded, original = [], forward.encode_parts

    def spy(checkpoint, *columns, **keywords):
        encoded.append(checkpoint.digest())
        return original(checkpoint, *columns, **keywords)

    with monkeypatch.context() as patch, running.spied() as trainers:
        patch.setattr(forward, "encode_parts", spy)
        train(settings)
    assert checkpoints.load(place(settings, "teacher_retriever")).digest() == teacher.digest()
    assert teacher.digest() not in encoded
    assert f"as it is in {index}" in capsys.readouterr().out
    initial = parameters.to_arrays(running.rehearse(whole)[0].initial_retriever().value().network)
    arrays = trainers["pretraining retriever"].began_with["retriever"]
    assert all(np.array_equal(arrays[key], initial[key]) for key in initial)
    running.check_best(settings)

    (tmp_path / "given").rename(tmp_path / "moved")
    moved = change(settings, "teacher_retriever", init=str(tmp_path / "moved" / "retriever"))
    assert set(running.statuses(moved).values()) == {"finished"}  # the same weights, wherever they lie
    checkpoints.save(checkpoints.load(place(whole, "pretraining")), moved.teacher_retriever.init)
    assert running.reasons(moved)["teacher_retriever"][0] == "initial checkpoint changed"


def test_a_finished_retriever_that_the_settings_would_change_is_refused(whole, tmp_path):
    init = str(place(whole, "finetuning"))
    settings = running.begun(whole, tmp_path / "run")
    settings = change(settings, "teacher_retriever", init=init, queries=0)
    settings = change(settings, "retriever", pooling="cls", passage_length=16)
    with pytest.raises(
        ValueError, match="teacher_retriever.init: .* has pooling mean, not cls; passage 20, not 16: change"
    ):
        train(settings)
