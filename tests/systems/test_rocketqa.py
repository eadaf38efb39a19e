"""RocketQA on the toy collection: its data, what a change repeats, selections of steps, what is refused."""

from __future__ import annotations

import dataclasses
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import running
import toy
from running import TRAINING, change, kill_after, kill_before, read, stop_at, train

from rocketqa_paddle import losses
from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.mining.calibration import calibrate
from rocketqa_paddle.networks import forward
from rocketqa_paddle.runs import searches, trainings
from rocketqa_paddle.runs.best import Best
from rocketqa_paddle.runs.measured import Measured
from rocketqa_paddle.runtime.storage import locked
from rocketqa_paddle.search.bm25 import bm25
from rocketqa_paddle.search.fusion import reciprocal_rank
from rocketqa_paddle.settings import OptimizerSettings
from rocketqa_paddle.systems.rocketqa.settings import DenoisingSettings, FirstRetrieverSettings

STEPS = ["step1", "step2", "step3", "step4"]
TITLES = dict(zip(STEPS, ("step 1 (M_D0)", "step 2 (M_C)", "step 3 (M_D1)", "step 4 (M_D2)"), strict=True))
RETRIEVERS = ["step1", "step3", "step4"]
LABELLED, UNLABELLED = "step2/scored.step1.train.labelled.npy", "step2/scored.step3.train.unlabelled.npy"


@pytest.fixture(scope="module")
def trainers():
    """Filled by `whole`: its trainers, by step."""
    return {}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, trainers):
    """The settings of a run that nothing interrupted."""
    settings = running.rocketqa(tmp_path_factory.mktemp("whole") / "run", data)
    with running.spied() as made:
        train(settings)
    trainers.update({name.split()[0]: trainer for name, trainer in made.items()})
    return settings


@pytest.fixture
def copied(whole, tmp_path):
    """The same run in a folder that a test may change."""
    return running.copied(whole, tmp_path / "run")


# What a run leaves --------------------------------------------------------------------------------


def test_the_run_folder_is_whole(whole):
    found = {f"{step}/hits.{split}" for step in RETRIEVERS for split in ("dev", "test")}
    found |= {"step1/hits.train.labelled", "step3/hits.train.unlabelled", "step2/reranked.step1.dev"}
    found |= {"step2/scored.step1.train.labelled", "step2/scored.step3.train.unlabelled"}
    trained = {step: ["reranker" if step == "step2" else "retriever"] for step in STEPS}
    running.check_files(whole, trained, found, ignored=r"step2/reranked\.step\d\.(dev|test)\..*")
    assert len(set(running.digests(whole).values())) == 4
    running.check_best(whole)


def test_the_tables_hold_what_the_runs_give(whole):
    report = running.text(whole, "report.md")
    dev = {f"retriever, {TITLES[step]}": f"{step}/hits.dev.tsv" for step in RETRIEVERS}
    dev[f"re-ranker, {TITLES['step2']}"] = "step2/reranked.step1.dev.tsv"
    assert running.table(running.text(whole, "steps.md")) == running.measured(whole, dev, "dev")
    test = {f"retriever, {TITLES[step]}": f"{step}/hits.test.tsv" for step in RETRIEVERS}
    for over in ("step1", running.best_step(whole, "retriever")):
        test[f"re-ranker over {TITLES[over]}"] = f"step2/reranked.{over}.test.tsv"
    assert running.table(report) == running.measured(whole, test, "test")
    assert report.startswith("**test**: 10 queries over 60 passages\n")
    assert f"{TITLES['step3']} against retriever, {TITLES['step1']}: RR@10" in report
    assert f"{TITLES['step4']} against retriever, {TITLES['step3']}: RR@10" in report


def test_cards_tell_data_and_dev_measures(whole, trainers):
    pseudo = len(trainers["step4"].examples) - 25
    data = {"step1": "25 random", "step2": "25 random", "step3": "25 denoised"}
    data["step4"] = f"25 denoised, {pseudo} pseudo"
    for step in STEPS:
        kind, file = ("reranker", "reranked.step1") if step == "step2" else ("retriever", "hits")
        card = running.text(whole, f"{step}/{kind}/README.md")
        qrels = toy.collection().splits["dev"].qrels
        values = metrics.evaluate(qrels, read(whole, f"{step}/{file}.dev.tsv"), running.MEASURES)
        assert f"on {len(trainers[step].examples)} groups ({data[step]})." in card
        assert f"On dev: RR@10 {values['RR@10']:.3f}, Success@5 {values['Success@5']:.3f}." in card
        assert f"Data: {whole.data.folder}." in card


def test_groups_keep_to_the_thresholds(whole, trainers):
    """No negative is at or above its threshold or a labelled positive; a pseudo positive is the best."""
    scored = {"denoised": read(whole, LABELLED), "pseudo": read(whole, UNLABELLED)}
    hits = {
        "denoised": read(whole, "step1/hits.train.labelled.tsv"),
        "pseudo": read(whole, "step3/hits.train.unlabelled.tsv"),
    }
    assert not hits["denoised"].keys() & hits["pseudo"].keys()
    labelled = {i: toy.collection().splits["train"].qrels[i] for i in hits["denoised"]}
    fitted = calibrate(scored["denoised"], labelled, whole.seed)
    judged = accepted = 0
    denoised, augmented = trainers["step3"].examples, trainers["step4"].examples
    for group in denoised + augmented:
        positive, *negatives = [passage.id for passage in group.passages]
        probability = {
            hit.passage_id: fitted.probability(hit.score) for hit in scored[group.source][group.query.id]
        }
        assert group.labels == (1, 0, 0)
        assert len({positive, *negatives}) == 3
        assert all(probability.get(negative, 0.0) < 0.3 for negative in negatives)
        accepted += sum(value >= 0.3 for i, value in probability.items() if i != positive)
        assert set(negatives) <= {hit.passage_id for hit in hits[group.source][group.query.id]}
        judged += sum(negative in probability for negative in negatives)
        if group.source == "denoised":
            assert labelled[group.query.id].keys() == {positive}
        else:
            assert probability[positive] == max(probability.values()) > 0.51
    assert judged > len(augmented)  # not all from deeper ranks
    assert accepted > len(augmented)  # there was something to leave out
    assert [group.source for group in denoised] == ["denoised"] * 25
    assert {group.source for group in augmented} == {"denoised", "pseudo"}
    assert augmented[:25] == denoised


def test_labelled_queries_are_no_unlabelled_ones(whole):
    run, _ = running.rehearse(whole)
    told = "train: 25 of 40 unlabelled queries are also labelled training queries: left out"
    few = "dev has 10 queries: too few to tell a model that has learned nothing from"
    assert run.notes == [told, f"{few} one that has learned little"]
    assert len(run.unlabelled) == 15
    assert not run.unlabelled.queries.keys() & run.labelled.queries.keys()
    assert not run.unlabelled.qrels


def test_training_queries_among_the_tests_are_told(whole, tmp_path):
    run, _ = running.rehearse(running.change(whole, "data", tests=["train", "test"]))
    assert "data.tests has train, whose queries the models are trained on" in run.notes


# Stopped and started again ------------------------------------------------------------------------


def test_starting_again_computes_nothing(whole):
    running.check_again(whole)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop_at(losses, "in_batch", 6), id="SIGTERM in step 3"),
        pytest.param(kill_before(searches, "write_hits", 5), id="killed scoring candidates"),
        pytest.param(kill_before(Measured, "_measure", 3), id="killed before dev is measured"),
        pytest.param(kill_after(Best, "keep", 1), id="killed when best/ has a new model"),
        pytest.param(kill_after(Measured, "choose", 4), id="killed before the report"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, stop):
    running.check_stop(whole, tmp_path / "run", stop)


# Only what a step was handed decides it -----------------------------------------------------------

FINISHED = dict.fromkeys(STEPS, "finished")
FROM4 = FINISHED | {"step4": "changed"}
FROM3 = FROM4 | {"step3": "changed"}
FROM2 = FROM3 | {"step2": "changed"}
FROM1 = dict.fromkeys(STEPS, "changed")
SEARCHED = dict.fromkeys(STEPS, "search again")


@pytest.mark.parametrize(
    ("path", "values", "steps", "reason"),
    [
        ("step1", {"steps": 5}, FROM1, "steps was 4, is now 5"),
        ("step1", {"queries": 10}, FROM1, "queries changed"),
        ("step1.optimizer", {"learning_rate": 0.1}, FROM1, "optimizer.learning_rate was 0.001, is now 0.1"),
        ("step2", {"loss": "binary"}, FROM2, "loss was list_loss, is now binary_loss"),
        ("step2", {"easy_negatives": 1}, FROM2, "groups.values.easy was 0, is now 1"),
        ("reranker", {"length": 30}, FROM2, "reranker.length was 28, is now 30"),
        ("denoising", {"depth": 25}, FROM2 | {"step1": "search again"}, "depth was 20, is now 25"),
        ("denoising", {"negative_below": 0.4}, FROM3, "groups.values.below was 0.3, is now 0.4"),
        ("denoising", {"choose": "random"}, FROM3, "groups.values.hardest was True, is now False"),
        ("denoising", {"scored": 12}, FROM3, "step2/scored.step1.train.labelled changed"),
        ("step3", {"cross_batch": False}, FROM3, "loss.cross_batch was True, is now False"),
        ("step3", {"denoise": False}, FROM3, "groups changed"),
        ("denoising", {"positive_above": 0.6}, FROM4, "groups.second.values.above was 0.51, is now 0.6"),
        ("retriever", {"dropout": 0.2}, FROM1, "retriever.dropout was 0.1, is now 0.2"),
        ("retriever", {"recompute": True}, FINISHED, None),
        ("", {"seed": 2}, FROM1, "seed was 1, is now 2"),
        ("", {"save_minutes": 5.0, "encode_batch": 8}, FINISHED, None),
        ("data", {"max_train_queries": 20}, FROM1, "train.labelled changed"),
        ("data", {"max_dev_queries": 5}, SEARCHED, "dev changed"),
        ("data", {"unlabelled": None}, dict.fromkeys(STEPS[:3], "finished"), None),
        ("evaluation", {"depth": 15}, SEARCHED, "depth was 20, is now 15"),
        ("evaluation", {"rerank_depth": 5}, FINISHED | {"step2": "search again"}, "depth was 10, is now 5"),
        ("evaluation", {"init": True}, {"initial": "new", **FINISHED}, None),
    ],
)
def test_a_change_reaches_what_it_decides_and_no_more(whole, path, values, steps, reason):
    running.check_change(whole, path, values, steps, reason)


@pytest.mark.parametrize(
    ("path", "values"),
    [("step3", {"init": "step1"}), ("step3", {"denoise": False}), ("step3", {"steps": 5})],
)
def test_a_change_is_told_in_a_few_words(whole, path, values):
    assert len(running.reasons(change(whole, path, **values))["step3"]) == 1


def test_a_setting_of_step3_repeats_steps_3_and_4_alone(whole, copied, capsys):
    train(changed := change(copied, "step3", steps=5))
    assert running.retrained(whole, copied) == {"step3", "step4"}
    said = capsys.readouterr().out.splitlines()
    for line in (
        "step1: finished before",
        "step2: finished before",
        "step3: done again: steps was 4, is now 5",
        "step4: done again: step3/hits.train.unlabelled changed",
    ):
        assert line in said
    expected = [(s, 5 if (s, n) == ("step3 retriever", 4) else n, *k) for s, n, *k in running.logged(whole)]
    assert running.logged(changed) == expected
    running.check_best(changed)
    train(copied)  # and back
    assert running.retrained(whole, copied) == set()
    assert running.text(copied, "report.md") == running.text(whole, "report.md")
    running.check_best(copied)


@pytest.mark.parametrize(
    ("path", "values"), [("evaluation", {"depth": 15}), ("data", {"tests": ["test", "train"]})]
)
def test_what_is_measured_is_searched_again_without_training(
    whole, copied, monkeypatch, capsys, path, values
):
    changed = change(copied, path, **values)
    with monkeypatch.context() as patch:
        running.forbid(patch, TRAINING)
        train(changed)
    assert running.retrained(whole, changed) == set()
    for step in RETRIEVERS:
        for split in ["dev", *changed.data.tests]:
            hits = read(changed, f"{step}/hits.{split}.tsv")
            assert {len(found) for found in hits.values()} == {changed.evaluation.depth}
    assert running.text(changed, "report.md").count("| system") == len(changed.data.tests)
    assert len(running.logged(changed)) == len(running.logged(whole))
    if path == "evaluation":
        assert "step1: searched and measured again: depth was 20, is now 15" in capsys.readouterr().out
    running.check_best(changed)


def test_other_measures_and_fewer_dev_queries_reach_tables_and_cards(copied, monkeypatch):
    with monkeypatch.context() as patch:
        running.forbid(patch, running.NETWORKS)
        train(change(copied, "evaluation", measures=["RR@10", "nDCG@5"]))
    for name in ("report.md", "steps.md", "step3/retriever/README.md"):
        assert "nDCG@5" in running.text(copied, name), name
    running.forbid(monkeypatch, TRAINING)
    train(changed := change(copied, "data", max_dev_queries=5))
    run, _ = running.rehearse(changed)
    for step in RETRIEVERS:
        card = running.text(changed, f"{step}/retriever/README.md")
        value = metrics.evaluate(run.dev.qrels, read(changed, f"{step}/hits.dev.tsv"), ["RR@10"])["RR@10"]
        assert re.findall(r"^On dev: RR@10 ([\d.]+)", card, flags=re.MULTILINE) == [f"{value:.3f}"]


def test_a_depth_of_reranking_leaves_the_hits_alone(copied, monkeypatch):
    """Only pairs are scored; no text is encoded."""
    running.forbid(monkeypatch, [*TRAINING, (forward, "encode_parts"), (forward, "encode_queries")])
    train(changed := change(copied, "evaluation", rerank_depth=5))
    assert "orders the 5 best" in running.text(changed, "report.md")


@pytest.mark.parametrize(
    "gone",
    [
        "step3/retriever",
        "step2/reranker",
        "step1/hits.dev.tsv",
        "step1/retriever/README.md",
        "best/index/passages.jsonl",
    ],
)
def test_what_is_not_there_is_made_again(whole, copied, gone):
    path = Path(copied.output) / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(copied)
    assert running.outcome(copied) == running.outcome(whole)
    running.check_best(copied)


@pytest.mark.parametrize("damaged", ["best/retriever/vocab.txt", "best/index/passages.jsonl"])
def test_what_is_damaged_in_best_is_made_again(whole, copied, damaged):
    """Half a vocabulary, and a text of as many bytes that is not the corpus's."""
    path = Path(copied.output) / damaged
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2] if path.suffix == ".txt" else text.replace(b"river", b"ocean"))
    train(copied)
    assert path.read_bytes() == text
    assert running.outcome(copied) == running.outcome(whole)


def test_a_model_that_is_no_more_leaves_best(whole, copied):
    """Whatever was best: what is trained anew, and much worse, must not be what people search with."""
    best = running.best_step(whole, "retriever")
    ruined = OptimizerSettings(learning_rate=0.5)
    worse = change(copied, best, steps=1, optimizer=ruined)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(running.Killed):
        kill_after(trainings.Training, "fit", 1)(patch)
        train(worse)
    assert not (Path(worse.output) / "best" / "retriever").exists()
    train(worse)
    running.check_best(worse)


# Steps taken as they are, and dry runs ------------------------------------------------------------


def test_until_a_step_and_on_equals_one_run(whole, tmp_path, capsys):
    settings = running.begun(whole, tmp_path / "run")
    train(settings, until_stage="step2")
    assert "ended after step2" in capsys.readouterr().out
    assert not any((tmp_path / "run" / name).exists() for name in ("step3", "report.md"))
    with pytest.raises(ValueError, match="step step3 is not finished: leave out --from-stage"):
        train(settings, "step4")
    train(settings, "step3", "step3")
    train(settings, from_stage="step4")
    assert running.outcome(settings) == running.outcome(whole)
    running.check_best(settings)


def test_from_a_step_takes_earlier_ones_as_they_are(whole, copied, capsys):
    changed = change(change(copied, "step1", steps=9), "step3", steps=5)
    train(changed, "step3")
    assert running.retrained(whole, changed) == {"step3", "step4"}
    assert "step1: done again" not in capsys.readouterr().out
    running.check_best(changed)
    train(changed, dry_run=True)  # without --from-stage it is seen
    assert "step1 would be done again: steps was 4, is now 9" in capsys.readouterr().out


def test_from_a_step_with_another_test_split(copied):
    """Steps 1 and 3, taken as they are, have no hits of it."""
    changed = change(change(copied, "data", tests=["test", "train"]), "step4", steps=5)
    with running.spied() as trainers:
        train(changed, "step4")
    assert list(trainers) == ["step4 retriever"]
    assert running.text(changed, "report.md").count("| system") == 2


def test_other_passages_with_steps_taken_as_they_are(whole, copied, data, tmp_path):
    """The models are trusted; what was searched and scored with them is made anew."""
    shutil.copytree(data, tmp_path / "data")
    texts = (tmp_path / "data/para.txt").read_text().replace("river", "ocean")
    (tmp_path / "data/para.txt").write_text(texts)
    changed = change(copied, "data", folder=str(tmp_path / "data"))
    train(changed, "step3")
    assert running.retrained(whole, changed) == {"step3", "step4"}
    assert "ocean" in running.text(changed, "best/index/passages.jsonl")
    assert "river" not in running.text(changed, "best/index/passages.jsonl")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (("step5",), "--from-stage step5: the steps of this run are step1, step2, step3, step4"),
        ((None, "step5"), "--until-stage step5: the steps of this run are step1, step2, step3, step4"),
        (("step3", "step2"), "--from-stage step3 comes after --until-stage step2"),
    ],
)
def test_a_selection_that_cannot_be(whole, monkeypatch, selection, message):
    running.forbid(monkeypatch, running.NETWORKS)
    with pytest.raises(ValueError, match=f"^{message}$"):
        train(whole, *selection)


# Other settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["init", "step1"])
def test_step3_without_denoising(copied, init):
    settings = change(copied, "step3", denoise=False, init=init, steps=1)
    with running.spied() as trainers:
        train(settings, until_stage="step3")
    trainer = trainers["step3 retriever"]
    assert [group.source for group in trainer.examples] == ["random"] * 25
    hits = read(settings, "step1/hits.train.labelled.tsv")
    for group in trainer.examples:
        best = {hit.passage_id for hit in hits[group.query.id][:10]}
        assert {passage.id for passage in group.passages[1:]} <= best
    check_beginning(settings, trainer, init)


def check_beginning(settings, trainer, init) -> None:
    """Its first weights are those of a step, or of the initial checkpoint."""
    arrays = trainer.began_with["retriever"]
    if init == "init":
        network = running.rehearse(settings)[0].initial_retriever().value().network
        expected = running.parameters.to_arrays(network)
        assert all(np.array_equal(arrays[key], expected[key]) for key in arrays)
    else:
        running.check_weights(arrays, Path(settings.output) / init / "retriever")


@pytest.mark.parametrize("init", ["init", "step1", "step3"])
def test_step4_begins_where_it_is_told(copied, init):
    settings = change(copied, "step4", init=init, steps=1, batch_size=4)
    with running.spied() as trainers:
        train(settings)
    assert list(trainers) == ["step4 retriever"]
    check_beginning(settings, trainers["step4 retriever"], init)


def test_a_reranker_that_is_trained_already(whole, copied):
    init = f"{whole.output}/step2/reranker"
    settings = change(change(copied, "step2", queries=0), "reranker", init=init)
    with running.spied() as trainers:
        train(settings)
    assert list(trainers) == ["step3 retriever", "step4 retriever"]
    assert running.retrained(whole, settings) == set()  # the same re-ranker makes the same data
    assert "not trained" in running.text(settings, "step2/reranker/README.md")


def test_negatives_of_bm25_in_step1(copied):
    settings = change(copied, "step1", candidates="bm25", negatives=2, steps=1)
    with running.spied() as trainers:
        train(settings, until_stage="step1")
    run, _ = running.rehearse(settings)
    found = bm25(run.corpus.passages, run.labelled.queries, 100)
    assert len(trainers["step1 retriever"].examples) == 25
    for group in trainers["step1 retriever"].examples:
        hits = {hit.passage_id for hit in found[group.query.id]}
        negatives = {passage.id for passage in group.passages[1:]}
        assert len(negatives) == 2
        assert negatives <= hits or len(hits - {group.passages[0].id}) < 2


def test_an_example_of_every_negative(copied):
    settings = change(copied, "step3", one_negative_per_example=True, steps=1)
    with running.spied() as trainers:
        train(settings, until_stage="step3")
    groups = trainers["step3 retriever"].examples
    assert len(groups) == 50
    assert {len(group.passages) for group in groups} == {2}


def test_without_unlabelled_queries_it_ends_with_step3(whole, copied, monkeypatch):
    shutil.rmtree(Path(copied.output) / "step4")
    running.forbid(monkeypatch, TRAINING)
    train(settings := change(copied, "data", unlabelled=None))
    assert {place for place in running.digests(whole) if "step4" not in place} == {*running.digests(settings)}
    assert "step 4" not in running.text(settings, "report.md")
    running.check_best(settings)


def test_the_report_has_bm25_alone_and_with_the_best_retriever(copied, monkeypatch):
    running.forbid(monkeypatch, TRAINING)
    train(settings := change(copied, "evaluation", bm25=True))
    best, run = running.best_step(settings, "retriever"), running.rehearse(settings)[0]
    [test] = run.tests
    dense = Candidates.load(Path(settings.output) / best / "hits.test.npy", run.corpus.ids)
    lexical = bm25(run.corpus.passages, test.queries, settings.evaluation.depth)
    fused = Candidates(dense.queries, run.corpus.ids, reciprocal_rank(dense.hits, lexical.hits))
    rows = running.table(report := running.text(settings, "report.md"))
    for title, found in {"BM25": lexical, "retriever and BM25": fused}.items():
        means = metrics.evaluate(test.qrels, found, running.MEASURES)
        assert rows[title] == pytest.approx(list(means.values()), abs=6e-4)
    assert f"retriever and BM25 against retriever, {TITLES[best]}: RR@10" in report


def test_the_initial_checkpoint_is_measured_where_asked(copied, monkeypatch):
    running.forbid(monkeypatch, TRAINING)
    train(change(copied, "evaluation", init=True))
    assert "| initial checkpoint " in running.text(copied, "report.md")
    running.check_best(copied)


def test_the_initial_checkpoint_is_among_the_steps(copied):
    train(change(copied, "evaluation", init=True))
    assert "initial checkpoint" in running.text(copied, "steps.md")


# Refused ------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder(copied):
    with ThreadPoolExecutor(1) as other:
        lock = locked(Path(copied.output) / "config.yaml")
        other.submit(lock.__enter__).result()
        with pytest.raises(ValueError, match="another process is at work here: wait for it, or stop it"):
            train(copied)
        other.submit(lock.__exit__, None, None, None).result()


@pytest.mark.parametrize("place", [".", "step3"])
def test_the_folder_of_something_else(whole, tmp_path, place):
    """Told before any work, and nothing is touched."""
    settings = dataclasses.replace(whole, output=str(tmp_path / "run"))
    if place != ".":
        settings = running.copied(whole, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / place)
    note = tmp_path / "run" / place / "thesis.txt"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("years of work")
    with pytest.raises(ValueError, match="choose another --output"):
        train(settings)
    assert note.read_text() == "years of work"


def test_the_folder_of_another_system_or_version(copied, data, tmp_path):
    with pytest.raises(ValueError, match="a run of another system, or version, .*denoising.*--output"):
        train(running.rocketqav2(copied.output, data))
    (Path(copied.output) / "step1" / "step.json").rename(Path(copied.output) / "step1" / "stage.json")
    with pytest.raises(ValueError, match="version 0.1 began this run and only it can go on"):
        train(copied)
    with pytest.raises(ValueError, match="config.yaml is a file or a device: choose another --output"):
        train(change(copied, "", output=f"{copied.output}/config.yaml"))


def test_a_split_with_the_name_of_a_query_set(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for name in ("{}.query.txt", "qrels.{}.tsv"):
        shutil.copy(data / name.format("test"), tmp_path / "data" / name.format("train.labelled"))
    settings = running.rocketqa(tmp_path / "run", tmp_path / "data")
    with pytest.raises(ValueError, match=r"train\.labelled"):
        train(change(settings, "data", tests=["train.labelled"]))


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("data", {"max_train_queries": None}, "none of the 40 queries of 'train' is left .40 are also"),
        ("step1", {"batch_size": 26}, "step1: 26 examples a step .* there are only 25"),
        ("step3", {"batch_size": 26}, "step3: 26 examples a step .* there are only 25"),
        ("step1", {"negatives": 60}, "60 negatives a group, but the corpus has only 60 passages"),
        ("step1", {"init": "package:no_such_package/model"}, "no_such_package"),
        ("reranker", {"init": "package:no_such_package/model"}, "no_such_package"),
    ],
)
def test_a_mistake_is_told_before_any_work(data, tmp_path, monkeypatch, path, values, message):
    running.forbid(monkeypatch, running.NETWORKS)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(change(running.rocketqa(tmp_path / "run", data), path, **values))
    assert [*(tmp_path / "run").glob("*")] in ([], [tmp_path / "run" / "corpus"])


@pytest.mark.parametrize(("below", "above"), [(0.9, 0.1), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0)])
def test_thresholds_that_cross(below, above):
    with pytest.raises(ValueError, match="expected 0 < negative_below < positive_above < 1"):
        DenoisingSettings(negative_below=below, positive_above=above)


def test_examples_of_negatives_need_negatives():
    with pytest.raises(ValueError, match="negatives=0, expected at least 1"):
        FirstRetrieverSettings(negatives=0, one_negative_per_example=True)


@pytest.fixture(scope="module")
def judged_by_pairs(whole, tmp_path_factory):
    """A run that ended after a re-ranker that was trained on pairs, whose scores are probabilities."""
    settings = running.copied(whole, tmp_path_factory.mktemp("pairs") / "run")
    settings = change(change(settings, "step2", loss="binary", steps=2), "denoising", negative_below=0.5)
    train(settings, until_stage="step2")
    return settings


@pytest.mark.parametrize(
    ("score", "scored", "message"),
    [
        (0.0, 20, "no candidate has a probability below"),  # neither rejected nor accepted
        (9.0, 20, "no candidate has a probability below"),  # all accepted: no negatives
        (9.0, 10, "no candidate has a probability below"),  # the same, but deeper ranks have negatives
        (-9.0, 10, r"all 25 labelled positives have a probability below .* 0\.000 to 0\.000"),
    ],
)
def test_a_reranker_that_scores_everything_alike(judged_by_pairs, tmp_path, score, scored, message):
    """It cannot tell a negative from a positive: told with its probabilities, before any training on that."""
    settings = running.copied(judged_by_pairs, tmp_path / "run")
    expect_no_training(change(settings, "denoising", scored=scored), score, message)


def test_a_reranker_of_lists_that_scores_everything_alike(copied):
    """No slope fits its scores."""
    (Path(copied.output) / LABELLED).unlink()
    expect_no_training(change(copied, "step3", steps=9), 0.1, "no candidate has a prob|scores other")


def expect_no_training(settings, score, message) -> None:
    def alike(_, parts, *__, **___):
        return (np.full(len(queries), score, np.float32) for queries, *_ in parts)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=message):
        running.forbid(patch, TRAINING)
        patch.setattr(forward, "score_parts", alike)
        train(settings)
    assert running.statuses(settings)["step3"] != "finished"
