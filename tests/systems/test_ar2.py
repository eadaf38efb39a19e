"""The whole of AR2 on the toy collection: rounds, schedules, candidates; it goes on after any stop."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import toy
import yaml
from test_rocketqa import change, forbid
from test_rocketqav2 import check_best, folder_of, kill_at, outcome, stop_and_go_on, stop_at

from rocketqa_paddle import checkpoints, losses
from rocketqa_paddle.data import formats
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.runs import pipeline, plan
from rocketqa_paddle.runs.stages import Selection
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    AdversarialLossSettings,
    AdversarialSettings,
    AR2Settings,
    CandidateSettings,
    ClozeSettings,
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmupSettings,
    StageSettings,
    WarmupSettings,
)
from rocketqa_paddle.systems.ar2 import run as ar2
from rocketqa_paddle.training.trainer import Trainer, learning_rate

STAGES = ["start", "warm-up", "round-001", "round-002"]
TRAININGS = [f"{stage} {model}" for stage in STAGES[2:] for model in ("reranker", "retriever")]
RATES = {
    "reranker": OptimizerSettings(learning_rate=1e-3, warmup_share=0.3),
    "retriever": OptimizerSettings(learning_rate=2e-3, warmup_share=0.2),
}
STEPS = {"reranker": 2, "retriever": 3}


def make(output, data, **changes) -> AR2Settings:
    """Of a run that goes through every stage in a second or two. `changes` replace whole sections."""
    shared = toy.settings(output, data)
    names = ["data", "retriever", "reranker", "warmup_retriever", "warmup_reranker", "evaluation"]
    sections = {name: getattr(shared, name) for name in names}
    stretches = {
        name: StageSettings(batch_size=4, steps=STEPS[name], optimizer=rate) for name, rate in RATES.items()
    }
    adversarial = AdversarialSettings(
        rounds=2, queries=20, groups=CandidateSettings(negatives=3, depth=20), **stretches
    )
    return AR2Settings(output=str(output), **(sections | {"adversarial": adversarial} | changes))


@pytest.fixture(scope="module")
def seen():
    """Filled by `whole`: the groups and the rates of every training, by its name."""
    return {"groups": {}, "rates": {}}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, seen):
    """The settings of a run that nothing interrupted."""
    settings = make(tmp_path_factory.mktemp("whole") / "run", data)
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, seen)
        ar2.train(settings)
    return settings


def remember(patch, seen) -> None:
    make_trainer, take_step = Trainer.__init__, Trainer._take_step

    def spy(self, stage, networks, examples, *rest, **keywords):
        seen["groups"][stage] = list(examples)
        make_trainer(self, stage, networks, examples, *rest, **keywords)

    def spy_step(self):
        values = take_step(self)
        seen["rates"].setdefault(self.stage, []).append(values["learning_rate"])
        return values

    patch.setattr(Trainer, "__init__", spy)
    patch.setattr(Trainer, "_take_step", spy_step)


def digests(settings, model) -> list[str]:
    return [checkpoints.load(folder_of(settings) / stage / model).digest() for stage in STAGES[1:]]


# What a run leaves --------------------------------------------------------------------------------


def test_the_run_folder_is_whole(whole):
    folder = folder_of(whole)
    others = {f"{stage}/hits.{split}.tsv" for stage in STAGES for split in ("dev", "test")}
    others |= {f"{stage}/reranked.dev.tsv" for stage in STAGES[1:]}
    others |= {"warm-up/hits.train.reranker.tsv", "warm-up/hits.train.round-001.tsv"}
    others |= {"round-001/hits.train.round-002.tsv"}
    trained = {"start": [], **dict.fromkeys(STAGES[1:], ["retriever", "reranker"])}
    toy.check_files(folder, trained, others, ignored=r"best/[^/]*\.tsv")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dataclasses.asdict(whole)
    check_best(whole)


def test_the_report_has_every_row(whole):
    text = (folder_of(whole) / "report.md").read_text()
    for row in ("start weights", "retriever, warmed up", "retriever, round-001", "retriever, round-002"):
        assert f"| {row} " in text
    assert "| re-ranker, warmed up " in text


def test_a_round_trains_the_ranker_first_and_both_models_move(whole, seen):
    names = [name for name in seen["groups"] if name.startswith("round")]
    assert names == TRAININGS
    for model in ("retriever", "reranker"):
        assert len(set(digests(whole, model))) == 3


def test_groups_are_labelled_positives_and_candidates_of_the_round(whole, seen):
    qrels = toy.collection().splits["train"].qrels
    for before, stage in (("warm-up", "round-001"), ("round-001", "round-002")):
        found = formats.read_run(folder_of(whole) / before / f"hits.train.{stage}.tsv")
        assert len(found) == 20
        drawn = {}
        for model in ("reranker", "retriever"):
            groups = seen["groups"][f"{stage} {model}"]
            assert {group.query.id for group in groups} == set(found)
            for group in groups:
                positive, *negatives = [passage.id for passage in group.passages]
                assert positive in qrels[group.query.id]
                assert not set(negatives) & set(qrels[group.query.id])
                assert set(negatives) <= {hit.passage_id for hit in found[group.query.id]}
                assert len(set(negatives)) == 3
            drawn[model] = groups
        assert drawn["reranker"] != drawn["retriever"]  # of the same candidates, each draws its own


def test_candidates_are_those_of_the_retriever_just_trained(whole):
    """The second round trains on what the first round's retriever finds, and the old ones stay for a stop."""
    folder, collection = folder_of(whole), toy.collection()
    hits = formats.read_run(folder / "round-001" / "hits.train.round-002.tsv")
    queries = {i: collection.splits["train"].queries[i] for i in hits}
    retriever = checkpoints.load(folder / "round-001" / "retriever")
    again = CorpusIndex(retriever, collection.passages, progress="").search(queries, 20)
    for query, found in again.items():
        assert [hit.passage_id for hit in hits[query]] == [hit.passage_id for hit in found]
    before = CorpusIndex(
        checkpoints.load(folder / "warm-up" / "retriever"), collection.passages, progress=""
    ).search(queries, 20)
    assert any(
        [hit.passage_id for hit in hits[query]] != [hit.passage_id for hit in before[query]] for query in hits
    )


@pytest.mark.parametrize("model", ["reranker", "retriever"])
def test_the_schedule_of_each_model_goes_through_all_rounds(whole, seen, model):
    rates = [rate for stage in STAGES[2:] for rate in seen["rates"][f"{stage} {model}"]]
    total = 2 * STEPS[model]
    assert rates == [learning_rate(step, total, RATES[model]) for step in range(total)]


def test_the_optimizers_go_on_from_round_to_round(whole, data, tmp_path, monkeypatch):
    loaded, load = [], Trainer._load_optimizer
    monkeypatch.setattr(
        Trainer,
        "_load_optimizer",
        lambda self, path: (loaded.append((self.stage, path.name)), load(self, path)),
    )
    settings = dataclasses.replace(whole, output=str(tmp_path / "run"))
    ar2.train(settings)
    assert loaded == [
        (f"round-002 {model}", f"{model}.optimizer.safetensors") for model in ("reranker", "retriever")
    ]
    assert not list((tmp_path / "run").glob("*/*.optimizer.safetensors"))  # taken over, or of no more use
    assert outcome(settings) == outcome(whole)


def test_the_ranker_judges_without_dropout_and_gets_no_gradient(whole, data, tmp_path, monkeypatch):
    """While the retriever trains, it is the same for the same lists, and only the retriever moves."""
    judged, original = [], ar2.reranker_scores

    def spy(reranker, batch):
        scores = original(reranker, batch)
        if scores.stop_gradient:
            judged.append(np.array_equal(scores.numpy(), original(reranker, batch).numpy()))
        return scores

    monkeypatch.setattr(ar2, "reranker_scores", spy)
    settings = change(dataclasses.replace(whole, output=str(tmp_path / "run")), "reranker", dropout=0.5)
    ar2.train(settings)
    assert judged == [True] * 2 * STEPS["retriever"]


def test_the_settings_of_the_loss_arrive(whole, data, tmp_path, monkeypatch):
    given, original = [], losses.ar2_retriever

    def spy(*scores, **settings):
        given.append(settings)
        return original(*scores, **settings)

    monkeypatch.setattr(losses, "ar2_retriever", spy)
    loss = AdversarialLossSettings(adversarial_weight=0.3, temperature=2.0, normalization="released")
    settings = change(dataclasses.replace(whole, output=str(tmp_path / "run")), "adversarial", loss=loss)
    ar2.train(settings)
    expected = {"adversarial_weight": 0.3, "temperature": 2.0, "normalization": "released"}
    assert given == [expected] * 2 * STEPS["retriever"]


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["released", "paper"])
def test_rounds_teach_both_models(whole, data, tmp_path, normalization):
    """A ranker that learns its lists teaches a retriever that has learned nothing."""
    fast = OptimizerSettings(learning_rate=5e-3, warmup_share=0.1)
    adversarial = AdversarialSettings(
        rounds=2,
        reranker=StageSettings(batch_size=10, steps=40, optimizer=fast),
        retriever=StageSettings(batch_size=10, steps=30, optimizer=fast),
        groups=CandidateSettings(negatives=6, depth=60),
        loss=AdversarialLossSettings(normalization=normalization),
    )
    untrained = str(toy.write_best(tmp_path / "untrained") / "reranker")
    settings = make(
        tmp_path / "run",
        data,
        reranker=RerankerSettings(start=untrained, length=28, dropout=0.0),
        warmup_retriever=WarmupSettings(queries=0),
        warmup_reranker=RerankerWarmupSettings(queries=0),
        adversarial=adversarial,
    )
    settings = change(settings, "retriever", dropout=0.0)
    ar2.train(settings)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = {name: [row for row in rows if row["stage"] == name and "loss" in row] for name in TRAININGS}
    first, last = logged[TRAININGS[0]][0]["loss"], logged[TRAININGS[2]][-1]["loss"]
    assert last < 0.8 * first
    first, last = logged[TRAININGS[1]][0], logged[TRAININGS[3]][-1]
    assert last["distillation"] < 0.9 * first["distillation"]
    check_best(settings)


# Inverse cloze ------------------------------------------------------------------------------------


def test_inverse_cloze_comes_before_the_warm_up(whole, data, tmp_path, capsys):
    """The toy's passages are single sentences but for those that are made longer here."""
    source = tmp_path / "data"
    shutil.copytree(data, source)
    path = source / "para.txt"
    lines = [line.rstrip("\n") for line in path.read_text().splitlines()]
    longer = [f"{line} Who saw it? it was the dog ." if i < 50 else line for i, line in enumerate(lines)]
    path.write_text("\n".join(longer) + "\n")
    cloze = ClozeSettings(passages=None, batch_size=8, steps=3, optimizer=RATES["retriever"])
    settings = make(tmp_path / "run", source, cloze=cloze)
    ar2.train(settings)
    run = ar2.AR2Run(settings)
    stages = {stage.name: stage for stage in run.stages()}
    assert list(stages) == ["start", "cloze", *STAGES[1:]]
    assert stages["warm-up"].after == ("cloze",)
    printed = capsys.readouterr().out
    assert "cloze: 50 groups; 10 passages left out (a single sentence)" in printed
    folder = tmp_path / "run"
    card = (folder / "cloze" / "retriever" / "README.md").read_text()
    assert "on 50 groups (50 cloze)" in card
    assert "| retriever, inverse cloze " in (folder / "report.md").read_text()

    part = change(settings, "cloze", passages=20)
    state = run.ledger.state({s.name: s for s in ar2.AR2Run(part).stages()}["cloze"], {})
    assert "cloze.passages was not set, is 20" in state.changes.values()


def test_a_corpus_without_sentences_trains_nothing(data, tmp_path):
    settings = make(tmp_path / "run", data, cloze=ClozeSettings(passages=None, batch_size=2, steps=1))
    with pytest.raises(ValueError, match="cloze: none of 60 passages has two sentences"):
        ar2.train(settings)


# Stopped and started again ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(
            stop_at(losses, "ar2_retriever", STEPS["retriever"] + 2),
            id="SIGTERM in the retriever's steps of round 2",
        ),
        pytest.param(kill_at(Trainer, "_take_step", 10, "before"), id="killed in the ranker's steps"),
        pytest.param(kill_at(Trainer, "fit", 3, "after"), id="killed before the ranker is saved"),
        pytest.param(kill_at(Trainer, "fit", 4, "after"), id="killed before the retriever is saved"),
        pytest.param(kill_at(pipeline.Pipeline, "search", 3, "before"), id="killed before the refresh"),
        pytest.param(kill_at(formats, "write_run_tsv", 9, "after"), id="killed between two runs"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, monkeypatch, stop):
    stop_and_go_on(ar2, whole, tmp_path / "run", monkeypatch, stop)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows if "loss" in row]
    assert len(steps) == len(set(steps))


def test_starting_again_computes_nothing(whole, monkeypatch):
    before = outcome(whole)
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    ar2.train(whole)
    assert outcome(whole) == before


def test_a_round_done_again_says_that_its_optimizer_begins_anew(whole, tmp_path, capsys):
    shutil.copytree(folder_of(whole), tmp_path / "run")
    settings = dataclasses.replace(whole, output=str(tmp_path / "run"))
    faster = dataclasses.replace(
        settings.adversarial.retriever, optimizer=OptimizerSettings(learning_rate=1e-2)
    )
    settings = change(settings, "adversarial", retriever=faster)
    ar2.train(settings, Selection(from_stage="round-002"))
    printed = capsys.readouterr().out
    for model in ("reranker", "retriever"):
        assert f"round-002: round-001 has kept no state of the {model}'s optimizer: it begins anew" in printed
    assert digests(settings, "retriever")[:2] == digests(whole, "retriever")[:2]
    assert digests(settings, "retriever")[2] != digests(whole, "retriever")[2]
    check_best(settings)


def test_the_old_engine_serves_until_the_new_one_is_whole(whole, tmp_path, monkeypatch):
    """While a new index is written, retriever and index in `best/` still fit each other."""
    shutil.copytree(folder_of(whole), tmp_path / "run")
    run = ar2.AR2Run(dataclasses.replace(whole, output=str(tmp_path / "run")))
    best, seen = tmp_path / "run" / "best", []
    old = checkpoints.load(best / "retriever").digest()
    write_texts = retrieval.write_texts

    def look(folder, passages):
        write_texts(folder, passages)
        seen.append(
            (
                checkpoints.load(best / "retriever").digest(),
                json.loads((best / "index/meta.json").read_text()),
            )
        )

    monkeypatch.setattr(retrieval, "write_texts", look)
    other = run.trained_model("warm-up", "retriever")
    assert other.digest() != old
    run._save_best("warm-up", other, CorpusIndex(other, run.passages, progress=""))
    assert [(model, meta["model"]) for model, meta in seen] == [(old, old)]
    assert checkpoints.load(best / "retriever").digest() == other.digest()
    assert json.loads((best / "index/meta.json").read_text())["model"] == other.digest()


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["released", "paper"])
def test_two_processes_end_as_one(data, tmp_path, normalization):
    """As one that takes the batch of both in two parts: over these the released term is averaged, too."""
    loss = AdversarialLossSettings(normalization=normalization)
    one = change(make(tmp_path / "one", data), "adversarial", loss=loss)
    one = change(change(one, "retriever", dropout=0.0, shared=True), "reranker", dropout=0.0)
    two = dataclasses.replace(one, output=str(tmp_path / "two"))
    halved = {name: dataclasses.replace(getattr(one.adversarial, name), batch_size=2) for name in STEPS}
    parts = {name: dataclasses.replace(getattr(one.adversarial, name), accumulate=2) for name in STEPS}
    one, two = change(one, "adversarial", **parts), change(two, "adversarial", **halved)
    for section in ("warmup_retriever", "warmup_reranker"):
        two = change(two, section, batch_size=getattr(one, section).batch_size // 2)
    ar2.train(one)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(dataclasses.asdict(two)), encoding="utf-8")
    done = toy.run(
        *(toy.FLEETRUN, "--nproc_per_node", "2", "--log_dir", tmp_path / "log"),
        *(toy.ROOT / "examples" / "train_ar2.sh", "--config", "two.yaml"),
        cwd=tmp_path,
        PYTHON=sys.executable,
    )
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(log[-3000:] for log in logs)
    for stage in STAGES[1:]:
        for model in ("retriever", "reranker"):
            ours, theirs = (
                parameters.to_arrays(checkpoints.load(folder_of(s) / stage / model).network)
                for s in (one, two)
            )
            no_softmax_sees = {name for name in ours if name.endswith(("key.bias", "output.bias"))}
            for key in ours.keys() - no_softmax_sees:
                np.testing.assert_allclose(
                    theirs[key], ours[key], atol=1e-3, err_msg=f"{stage} {model} {key}"
                )


# What it would do ---------------------------------------------------------------------------------


def test_a_dry_run_counts_the_work(whole, tmp_path, capsys):
    settings = dataclasses.replace(whole, output=str(tmp_path / "new"))
    ar2.train(settings, Selection(dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "| round-001 " in line]
    texts, pairs = 3 * 4 * (1 + 4), 2 * 4 * 4  # the retriever's and the ranker's
    searched = 60 + 10 + 10 + 20  # corpus, dev, test, the next round's queries
    scored = 3 * 4 * 4 + 10 * 10  # of the retriever's lists, and dev's candidates
    assert row[2:7] == ["new", "5", str(texts + pairs), str(searched), str(scored)]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("rounds", "handed_on"), [(1, 0), (2, 2 * 40), (3, 2 * 2 * 40)])
def test_a_dry_run_counts_optimizers_that_wait_for_the_next_round(whole, rounds, handed_on):
    """While a round is at work, those of the round before are there, too."""
    adversarial = dataclasses.replace(whole.adversarial, rounds=rounds)
    stages = ar2.AR2Run(dataclasses.replace(whole, adversarial=adversarial)).stages()
    assert plan._passing(stages, {"retriever": 10, "reranker": 30}) == 2 * 3 * 40 + handed_on


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
        (lambda: ClozeSettings(keep=1.1), "keep=1.1"),
        (lambda: ClozeSettings(passages=-1), "passages=-1"),
    ],
)
def test_wrong_settings_are_refused(make_settings, message):
    with pytest.raises(ValueError, match=message):
        make_settings()


def test_more_negatives_than_passages(data, tmp_path):
    settings = change(make(tmp_path, data), "adversarial", groups=CandidateSettings(negatives=60, depth=70))
    with pytest.raises(ValueError, match="60 negatives a group"):
        ar2.train(settings)


def test_without_a_round_it_is_a_warm_up(data, tmp_path):
    settings = change(make(tmp_path / "run", data), "adversarial", rounds=0)
    ar2.train(settings)
    assert {path.name for path in (tmp_path / "run").glob("*/retriever")} == {"retriever"}
    assert "No round" not in (tmp_path / "run" / "report.md").read_text()
    check_best(settings)
