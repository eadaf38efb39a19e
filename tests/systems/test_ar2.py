"""AR2 on the toy collection: rounds, schedules, optimizers that go on, candidates, the inverse cloze task."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import running
import toy
from running import RATES, STEPS, change, kill_after, kill_before, read, stop_at, train

from rocketqa_paddle import checkpoints, losses
from rocketqa_paddle.data.dataset import Corpus
from rocketqa_paddle.records import Model, Passage
from rocketqa_paddle.runs import run as runs
from rocketqa_paddle.runs import searches
from rocketqa_paddle.runs.best import Best
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmUpSettings,
    TrainingSettings,
    WarmUpSettings,
)
from rocketqa_paddle.systems.ar2 import run as ar2
from rocketqa_paddle.systems.ar2.settings import (
    AdversarialLossSettings,
    AdversarialSettings,
    CandidateSettings,
    ICTSettings,
)
from rocketqa_paddle.training.optimizer import Optimizer, learning_rate
from rocketqa_paddle.training.trainer import Trainer

NAMES = ["initial", "warm-up", "round-001", "round-002"]
TRAININGS = [f"{step} {kind}" for step in NAMES[2:] for kind in ("reranker", "retriever")]


@pytest.fixture(scope="module")
def trainers():
    """Filled by `whole`: its trainers, by name."""
    return {}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, trainers):
    """The settings of a run that nothing interrupted."""
    settings = running.ar2(tmp_path_factory.mktemp("whole") / "run", data)
    with running.spied() as made:
        train(settings)
    trainers.update(made)
    return settings


@pytest.fixture
def copied(whole, tmp_path):
    """The same run in a folder that a test may change."""
    return running.copied(whole, tmp_path / "run")


# What a run leaves --------------------------------------------------------------------------------


def test_the_run_folder_is_whole(whole):
    found = {f"{step}/hits.{split}" for step in NAMES for split in ("dev", "test")}
    found |= {f"{step}/reranked.warm-up.dev" for step in NAMES[1:]}
    found |= {"warm-up/hits.train.reranker", "warm-up/hits.train.round-001"}
    found |= {"round-001/hits.train.round-002"}
    trained = {"initial": [], **dict.fromkeys(NAMES[1:], ["retriever", "reranker"])}
    running.check_files(whole, trained, found, ignored=r"[^/]+/reranked\.[^/]+\.(dev|test)\..*")
    running.check_best(whole)


def test_the_report_has_every_row(whole):
    rows = running.table(running.text(whole, "report.md"))
    retrievers = [f"retriever, {title}" for title in ("warmed up", "round-001", "round-002")]
    assert [*rows][:5] == ["initial checkpoint", *retrievers, "re-ranker, warmed up"]
    files = dict(zip([*rows][:4], (f"{step}/hits.test.tsv" for step in NAMES), strict=True))
    assert {row: rows[row] for row in files} == running.measured(whole, files, "test")


def test_a_round_trains_the_ranker_first_and_both_models_move(whole, trainers):
    assert list(trainers) == ["warm-up retriever", "warm-up reranker", *TRAININGS]
    for kind in ("retriever", "reranker"):
        assert len(set(running.digests(whole, kind).values())) == 3
        for before, step in zip(NAMES[1:], NAMES[2:], strict=False):
            arrays = trainers[f"{step} {kind}"].began_with[kind]
            running.check_weights(arrays, Path(whole.output) / before / kind)


def test_groups_are_labelled_positives_and_candidates_of_the_round(whole, trainers):
    qrels = toy.collection().splits["train"].qrels
    for before, step in (("warm-up", "round-001"), ("round-001", "round-002")):
        found = read(whole, f"{before}/hits.train.{step}.tsv")
        assert len(found) == 20
        drawn = {kind: trainers[f"{step} {kind}"].examples for kind in STEPS}
        for groups in drawn.values():
            assert {group.query.id for group in groups} == set(found)
            for group in groups:
                positive, *negatives = [passage.id for passage in group.passages]
                assert positive in qrels[group.query.id]
                assert not set(negatives) & set(qrels[group.query.id])
                assert set(negatives) <= {hit.passage_id for hit in found[group.query.id]}
                assert len(set(negatives)) == 3
        assert drawn["reranker"] != drawn["retriever"]  # of the same candidates, each draws its own


def test_candidates_are_those_of_the_retriever_just_trained(whole):
    """The second round trains on what the first round's retriever finds."""
    collection = toy.collection()
    hits = read(whole, "round-001/hits.train.round-002.tsv")
    queries = {i: collection.splits["train"].queries[i] for i in hits}
    found = {}
    for step in ("warm-up", "round-001"):
        retriever = checkpoints.load(Path(whole.output) / step / "retriever")
        run = CorpusIndex(retriever, collection.passages, progress="").search(queries, 20)
        found[step] = {query: [hit.passage_id for hit in hits] for query, hits in run.items()}
    ours = {query: [hit.passage_id for hit in found] for query, found in hits.items()}
    assert ours == found["round-001"] != found["warm-up"]


@pytest.mark.parametrize("kind", STEPS)
def test_the_schedule_of_each_model_goes_through_all_rounds(trainers, whole, kind):
    rates = [rate for step in NAMES[2:] for rate in trainers[f"{step} {kind}"].rates]
    total = 2 * STEPS[kind]
    assert rates == [learning_rate(step, total, RATES[kind]) for step in range(total)]


# The losses ---------------------------------------------------------------------------------------


def test_the_ranker_judges_as_it_is_and_the_settings_arrive(copied, monkeypatch):
    """It judges without dropout and gets no gradient: its scores of the same lists are the same."""
    judged, given = [], []
    score, loss = ar2.reranker_scores, losses.ar2_retriever

    def spy(reranker, batch):
        scores = score(reranker, batch)
        if scores.stop_gradient:
            judged.append(np.array_equal(scores.numpy(), score(reranker, batch).numpy()))
        return scores

    monkeypatch.setattr(ar2, "reranker_scores", spy)
    monkeypatch.setattr(
        losses,
        "ar2_retriever",
        lambda *scores, **options: (given.append(options), loss(*scores, **options))[1],
    )
    options = {"adversarial_weight": 0.3, "temperature": 2.0, "normalization": "released"}
    settings = change(copied, "reranker", dropout=0.5)
    train(change(settings, "adversarial", loss=AdversarialLossSettings(**options)), until_stage="round-001")
    assert judged == [True] * STEPS["retriever"]
    assert given == [options] * STEPS["retriever"]


def test_rounds_teach_both_models(data, tmp_path):
    """A ranker that learns its lists teaches a retriever that has learned nothing."""
    fast = OptimizerSettings(learning_rate=8e-3, warmup_ratio=0.1)
    settings = running.ar2(
        tmp_path / "run",
        data,
        reranker=RerankerSettings(init=str(toy.write_best(tmp_path / "untrained") / "reranker"), length=28),
        warmup_retriever=WarmUpSettings(queries=0),
        warmup_reranker=RerankerWarmUpSettings(queries=0),
        adversarial=AdversarialSettings(
            rounds=2,
            reranker=TrainingSettings(batch_size=10, steps=25, optimizer=fast),
            retriever=TrainingSettings(batch_size=10, steps=20, optimizer=fast),
            groups=CandidateSettings(negatives=6, depth=60),
        ),
    )
    train(change(change(settings, "retriever", dropout=0.0), "reranker", dropout=0.0))
    rows = [row for row in running.log(settings) if "loss" in row]
    logged = {name: [row for row in rows if row["stage"] == name] for name in TRAININGS}
    first, last = logged[TRAININGS[0]][0]["loss"], logged[TRAININGS[2]][-1]["loss"]
    assert last < 0.8 * first
    first, last = logged[TRAININGS[1]][0], logged[TRAININGS[3]][-1]
    assert last["distillation"] < 0.9 * first["distillation"]


# The inverse cloze task ---------------------------------------------------------------------------


def test_inverse_cloze_comes_before_the_warm_up(copied, tmp_path, capsys):
    """The toy's passages are single sentences but for those that are made longer here."""
    shutil.copytree(copied.data.folder, tmp_path / "data")
    path = tmp_path / "data" / "para.txt"
    lines = path.read_text().splitlines()
    longer = [f"{line} Who saw it? it was the dog ." if i < 50 else line for i, line in enumerate(lines)]
    path.write_text("\n".join(longer) + "\n")
    settings = change(copied, "data", folder=str(tmp_path / "data"))
    ict = ICTSettings(passages=None, batch_size=8, steps=3, optimizer=RATES["retriever"])
    settings = change(change(settings, "", ict=ict), "adversarial", rounds=0)
    with running.spied() as trainers:
        train(settings)
    assert list(trainers) == ["ict retriever", "warm-up retriever", "warm-up reranker"]
    arrays = trainers["warm-up retriever"].began_with["retriever"]
    running.check_weights(arrays, Path(settings.output) / "ict" / "retriever")
    assert "ict: 50 groups; 10 passages left out (a single sentence)" in capsys.readouterr().out
    assert "on 50 groups (50 ict)" in running.text(settings, "ict/retriever/README.md")
    assert "| retriever, inverse cloze task " in running.text(settings, "report.md")
    part = change(settings, "ict", passages=20)
    assert "groups.passages was not set, is now 20" in running.reasons(part)["ict"]


def test_a_corpus_without_sentences_trains_nothing(data, tmp_path):
    settings = running.ar2(tmp_path / "run", data, ict=ICTSettings(passages=None, batch_size=2, steps=1))
    with pytest.raises(ValueError, match="ict: none of 60 passages has two sentences: set ict.passages=0"):
        train(settings)


def test_a_passage_that_is_there_twice_is_read_once_before_the_warm_up():
    """Else each would be a negative of the other's sentence."""
    texts = {
        "a": "It lives near a river. Nobody has seen it.",
        "b": "it lives  NEAR a river. Nobody has seen it.",
        "c": "It lives far away. Nobody has seen it.",
    }
    corpus = Corpus({id: Passage(id, "", text) for id, text in texts.items()})
    groups, [note] = ar2._ict(corpus, None, 0.1, 1, drop_false_negatives=True)
    assert [group.query.id for group in groups] == ["a", "c"]
    assert note.endswith("left out (a single sentence); 1 left out (they say what another one says)")
    groups, [note] = ar2._ict(corpus, None, 0.1, 1, drop_false_negatives=False)
    assert [group.query.id for group in groups] == ["a", "b", "c"]
    assert note == "3 groups; 0 passages left out (a single sentence)"


# Stopped and started again ------------------------------------------------------------------------


def test_starting_again_computes_nothing(whole):
    running.check_again(whole)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(
            stop_at(losses, "ar2_retriever", STEPS["retriever"] + 2),
            id="SIGTERM in the retriever's steps of round 2",
        ),
        pytest.param(kill_before(Trainer, "_take_step", 10), id="killed in the ranker's steps"),
        pytest.param(kill_after(Trainer, "fit", 3), id="killed before the ranker is saved"),
        pytest.param(kill_after(Trainer, "fit", 6), id="killed before the last retriever is saved"),
        pytest.param(kill_before(searches.Searches, "encode_corpus", 3), id="killed before the refresh"),
        pytest.param(kill_after(searches, "write_hits", 9), id="killed between two runs"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, stop):
    running.check_stop(whole, tmp_path / "run", stop)


def test_a_stop_just_after_a_model_is_saved_leaves_no_optimizer(whole, tmp_path):
    running.check_stop(whole, tmp_path / "run", kill_after(runs.Run, "_save", 5))


def test_the_optimizers_go_on_from_round_to_round(whole, tmp_path, monkeypatch):
    loaded, load = [], Optimizer.load
    monkeypatch.setattr(Optimizer, "load", lambda self, path: (loaded.append(path), load(self, path)))
    settings = dataclasses.replace(whole, output=str(tmp_path / "run"))
    train(settings)
    folder = Path(settings.output) / "round-001"
    assert loaded == [folder / f"{kind}.optimizer.safetensors" for kind in ("reranker", "retriever")]
    assert not list(folder.parent.glob("*/*.optimizer.safetensors"))  # taken over, or of no more use
    assert running.outcome(settings) == running.outcome(whole)


# Only what a step was handed decides it -----------------------------------------------------------

FINISHED = dict.fromkeys(NAMES, "finished")
ROUNDS = FINISHED | {"round-001": "changed", "round-002": "changed"}


@pytest.mark.parametrize(
    ("path", "values", "steps", "reason"),
    [
        ("adversarial", {"queries": 10}, ROUNDS | {"warm-up": "search again"}, "train.round-001 changed"),
        ("adversarial", {"rounds": 3}, ROUNDS | {"round-003": "new"}, "schedule.total was 6, is now 9"),
        ("adversarial.reranker", {"steps": 3}, ROUNDS, "steps was 2, is now 3"),
        ("adversarial.loss", {"temperature": 2.0}, ROUNDS, "loss.temperature was 1.0, is now 2.0"),
        ("adversarial.groups", {"negatives": 2}, ROUNDS, "groups.negatives was 3, is now 2"),
        ("adversarial", {"first_query": 40}, FINISHED, None),  # 40 queries on, all are dealt as before
        ("ict", {"keep": 0.5}, FINISHED, None),  # there is no such step
    ],
)
def test_a_change_reaches_what_it_decides_and_no_more(whole, path, values, steps, reason):
    running.check_change(whole, path, values, steps, reason)


def test_a_changed_loss_gives_what_a_new_run_gives(whole, copied, tmp_path):
    loss = AdversarialLossSettings(temperature=2.0)
    settings = change(copied, "adversarial", loss=loss)
    train(settings)
    new = dataclasses.replace(settings, output=str(tmp_path / "new"))
    train(new)
    assert running.retrained(settings, new) == set()


def test_a_round_done_again_says_that_its_optimizers_begin_anew(whole, copied, capsys):
    settings = change(copied, "adversarial.retriever", optimizer=OptimizerSettings(learning_rate=1e-2))
    train(settings, from_stage="round-002")
    said = capsys.readouterr().out
    assert "round-002: no state of the retriever's optimizer is kept: it begins anew" in said
    assert running.retrained(whole, settings) == {"round-002"}
    running.check_best(settings)


def test_the_old_engine_serves_until_the_new_one_is_whole(copied, monkeypatch):
    """While a new index is written, retriever and index in `best/` still fit each other."""
    folder = Path(copied.output)
    run, plan = running.rehearse(copied)
    best = Best(folder, folder / "best", copied)
    other = next(
        model
        for step in plan.steps.values()
        for model in step.models
        if model.kind is Model.RETRIEVER and step.name != running.best_step(copied, "retriever")
    )
    write_store, seen = retrieval.write_store, []

    def both() -> tuple[str, str]:
        meta = json.loads((folder / "best/index/meta.json").read_text())
        return checkpoints.load(folder / "best/retriever").digest(), meta["model"]

    def look(index, passages):
        seen.append(both())
        return write_store(index, passages)

    before = both()
    monkeypatch.setattr(retrieval, "write_store", look)
    index = CorpusIndex(other.value(), run.corpus.passages, progress="")
    best.keep(other, "It is another.", other.value().digest(), index)
    assert seen == [before]
    assert both() == (other.value().digest(), other.value().digest())
    assert before[0] == before[1] != both()[0]


# Refused before any work --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_settings", "message"),
    [
        (lambda: CandidateSettings(negatives=0), "negatives=0"),
        (lambda: CandidateSettings(depth=0), "depth=0"),
        (lambda: AdversarialLossSettings(adversarial_weight=-0.1), "adversarial_weight=-0.1"),
        (lambda: AdversarialLossSettings(temperature=0.0), "temperature=0.0"),
        (lambda: AdversarialSettings(rounds=-1), "rounds=-1"),
        (lambda: AdversarialSettings(queries=0), "queries=0"),
        (lambda: ICTSettings(keep=1.1), "keep=1.1"),
        (lambda: ICTSettings(passages=-1), "passages=-1"),
    ],
)
def test_wrong_settings_are_refused(make_settings, message):
    with pytest.raises(ValueError, match=message):
        make_settings()


def test_more_negatives_than_passages(data, tmp_path, monkeypatch):
    running.forbid(monkeypatch, running.NETWORKS)
    settings = running.ar2(tmp_path / "run", data)
    with pytest.raises(ValueError, match="60 negatives a group"):
        train(change(settings, "adversarial.groups", negatives=60, depth=70))


def test_without_a_round_it_is_a_warm_up(copied, monkeypatch):
    running.forbid(monkeypatch, running.TRAINING)
    train(settings := change(copied, "adversarial", rounds=0))
    report = running.text(settings, "report.md")
    assert "No round" not in report
    assert "round-001" not in report
    running.check_best(settings)
