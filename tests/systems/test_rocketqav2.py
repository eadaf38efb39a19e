"""RocketQAv2 on the toy collection, and what every system shares: data, searches, `best/`, going on."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import command_line
import numpy as np
import pytest
import running
import toy
from running import change, kill_after, kill_before, read, stop_at, train

from rocketqa_paddle import SearchEngine, checkpoints, losses, toolkit
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.mining import calibration
from rocketqa_paddle.runs import searches
from rocketqa_paddle.settings import (
    DataSettings,
    EvaluationSettings,
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmUpSettings,
    WarmUpSettings,
)
from rocketqa_paddle.systems.rocketqav2.settings import GroupSettings, JointSettings
from rocketqa_paddle.training.trainer import Trainer

STEPS = ["initial", "warm-up", "round-001", "round-002"]
TITLES = dict(zip(STEPS[1:], ("warmed up", "round-001", "round-002"), strict=True))
JOINT = "retriever and reranker"
NOT_WARMED_UP = {
    "warmup_retriever": WarmUpSettings(queries=0),
    "warmup_reranker": RerankerWarmUpSettings(queries=0),
}


@pytest.fixture(scope="module")
def trainers():
    """Filled by `whole`: its trainers, by name."""
    return {}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, trainers):
    """The settings of a run that nothing interrupted."""
    settings = running.rocketqav2(tmp_path_factory.mktemp("whole") / "run", data)
    with running.spied() as made:
        train(settings)
    trainers.update(made)
    return settings


# What a run leaves --------------------------------------------------------------------------------


def test_the_run_folder_is_whole(whole):
    found = {f"{step}/hits.{split}" for step in STEPS for split in ("dev", "test")}
    found |= {f"{step}/reranked.warm-up.dev" for step in STEPS[1:]}
    found |= {"warm-up/hits.train.reranker", "warm-up/hits.train.round-001"}
    found |= {"round-001/hits.train.round-002", "warm-up/scored.warm-up.train.round-001"}
    found |= {"round-001/scored.round-001.train.round-002"}
    trained = {"initial": [], **dict.fromkeys(STEPS[1:], ["retriever", "reranker"])}
    running.check_files(whole, trained, found, ignored=r"[^/]+/reranked\.[^/]+\.(dev|test)\..*")
    for kind in ("retriever", "reranker"):
        assert len(set(running.digests(whole, kind).values())) == 3


def test_the_tables_hold_what_the_runs_give(whole):
    report, on_dev = running.text(whole, "report.md"), running.table(running.text(whole, "steps.md"))
    retrievers = {f"retriever, {title}": step for step, title in TITLES.items()}
    rerankers = {f"re-ranker, {title}": step for step, title in TITLES.items()}
    dev = {row: f"{step}/hits.dev.tsv" for row, step in retrievers.items()}
    dev |= {row: f"{step}/reranked.warm-up.dev.tsv" for row, step in rerankers.items()}
    initial = {"retriever, initial checkpoint": "initial/hits.dev.tsv"}
    assert on_dev == running.measured(whole, initial | dev, "dev")
    trained = [row for both in zip(retrievers, rerankers, strict=True) for row in both]
    assert list(on_dev) == [*initial, *trained]

    best = {kind: running.best_step(whole, kind) for kind in ("retriever", "reranker")}
    test = {row: f"{step}/hits.test.tsv" for row, step in retrievers.items()}
    test = {"initial checkpoint": "initial/hits.test.tsv", **test}
    for step in ("warm-up", best["reranker"], "round-002"):
        test[f"re-ranker, {TITLES[step]}"] = f"{step}/reranked.{best['retriever']}.test.tsv"
    assert running.table(report) == running.measured(whole, test, "test")
    assert report.startswith("**test**: 10 queries over 60 passages\n")
    assert "| system " in report
    assert f"The re-rankers order the 10 best of the retriever of {best['retriever']}." in report


def test_the_log_has_every_step(whole):
    rows = running.log(whole)
    names = ["warm-up retriever", "warm-up reranker", *(f"{step} {JOINT}" for step in STEPS[2:])]
    assert [(row["stage"], row["step"]) for row in rows if "loss" in row] == [
        (name, step) for name in names for step in (1, 4)
    ]
    for row in rows:
        assert ("kl" in row) == ("cross_entropy" in row) == (row["stage"] in names[2:])
    qrels = toy.collection().splits["dev"].qrels
    for kind, file in {"retriever": "hits.dev.tsv", "reranker": "reranked.warm-up.dev.tsv"}.items():
        told = {row["stage"]: row[f"dev/{kind}/RR@10"] for row in rows if f"dev/{kind}/RR@10" in row}
        assert list(told) == (STEPS if kind == "retriever" else STEPS[1:])
        for step, value in told.items():
            values = metrics.evaluate(qrels, read(whole, f"{step}/{file}"), ["RR@10"])
            assert value == pytest.approx(values["RR@10"])


def test_best_is_a_search_engine(whole):
    """This re-ranker orders dev worse than the retriever does, so it is left out, and the report says so."""
    running.check_best(whole)
    assert list(running.best_record(whole)) == ["retriever"]
    dual = toolkit.load_model(f"{whole.output}/best/retriever")
    assert dual.matching(["red dog"], ["the red dog"]).shape == (1,)
    over = running.best_step(whole, "retriever")
    judged = running.best_step(whole, "reranker")
    files = {"with": f"{judged}/reranked.{over}.dev.tsv", "without": f"{over}/hits.dev.tsv"}
    values = {name: read_value(whole, file) for name, file in files.items()}
    assert (
        f"best/ leaves out the re-ranker of {judged}: on dev, RR@10 is {values['with']:.3f} when it orders "
        f"the 10 best passages of the retriever of {over}, and {values['without']:.3f} without it (p = "
    ) in running.text(whole, "report.md")
    [result, *_] = SearchEngine.open(f"{whole.output}/best").search(["red dog"])[0]
    assert result.reranker_score is None


def read_value(settings, file) -> float:
    qrels = toy.collection().splits["dev"].qrels
    return metrics.evaluate(qrels, read(settings, file), ["RR@10"])["RR@10"]


@pytest.mark.parametrize(("learning_rate", "kept"), [(3e-3, True), (5e-4, False)])
def test_a_reranker_is_in_best_only_if_it_helps_by_more_than_chance(data, tmp_path, learning_rate, kept):
    """The retriever has learned nothing, and both re-rankers order dev better, one of them by little."""
    settings = running.rocketqav2(
        tmp_path / "run",
        data,
        data=DataSettings(folder=str(data), train="dev", tests=["test"]),
        evaluation=EvaluationSettings(depth=40, rerank_depth=40, measures=running.MEASURES),
        warmup_retriever=WarmUpSettings(queries=0),
        warmup_reranker=RerankerWarmUpSettings(
            batch_size=10, steps=300, negatives=6, optimizer=OptimizerSettings(learning_rate=learning_rate)
        ),
        joint=JointSettings(rounds=0),
        stop_on_collapse=False,
    )
    train(settings)
    running.check_best(settings)
    files = ("warm-up/reranked.warm-up.dev.tsv", "warm-up/hits.dev.tsv")
    reranked, found = (read_value(settings, file) for file in files)
    assert reranked > found
    best, report = SearchEngine.open(f"{settings.output}/best"), running.text(settings, "report.md")
    judged = [result.reranker_score is not None for result in best.search(["red dog"], k=50)[0]]
    if kept:
        assert "best/ has the re-ranker of warm-up: on dev, RR@10 is " in report
        assert "re-ranker, warmed up against retriever, warmed up: RR@10 " in report
        assert best.depth == settings.evaluation.rerank_depth == 40
        assert judged == [True] * 40 + [False] * 10
    else:
        assert "best/ leaves out the re-ranker of warm-up: on dev, RR@10 is " in report
        assert not any(judged)


def test_the_initial_checkpoint_is_in_best_if_nothing_trained_is_as_good(whole, data, tmp_path):
    settings = running.rocketqav2(
        tmp_path / "run",
        data,
        retriever=dataclasses.replace(whole.retriever, init=f"{whole.output}/round-001/retriever"),
        warmup_retriever=WarmUpSettings(
            batch_size=8, steps=3, optimizer=OptimizerSettings(learning_rate=1.0)
        ),
        joint=JointSettings(rounds=0),
        evaluation=dataclasses.replace(whole.evaluation, bm25=True),
    )
    train(settings)
    running.check_best(settings)
    assert running.best_step(settings, "retriever") == "initial"
    given, kept = (
        checkpoints.load(f"{f}/retriever") for f in (f"{whole.output}/round-001", tmp_path / "run/best")
    )
    assert given.digest() == kept.digest()
    report = running.text(settings, "report.md")
    assert "No round gave" not in report
    for better in ("re-ranker, warmed up", "retriever and BM25"):
        assert f"{better} against initial checkpoint: RR@10" in report
    running.check_again(settings)


def test_rounds_use_other_queries_and_the_models_of_the_round_before(whole, trainers):
    first, second = (
        read(whole, f"{before}/hits.train.{step}.tsv")
        for before, step in (("warm-up", "round-001"), ("round-001", "round-002"))
    )
    assert len(first) == len(second) == 20
    assert not first.keys() & second.keys()
    qrels = toy.collection().splits["train"].qrels
    for query, hits in read(whole, "warm-up/scored.warm-up.train.round-001.tsv").items():
        candidates = {hit.passage_id for hit in first[query]}
        assert {hit.passage_id for hit in hits} == candidates | set(qrels[query])
    for before, step in (("warm-up", "round-001"), ("round-001", "round-002")):
        trainer = trainers[f"{step} {JOINT}"]
        assert {group.query.id for group in trainer.examples} == set(first if step == "round-001" else second)
        for kind, arrays in trainer.began_with.items():
            running.check_weights(arrays, Path(whole.output) / before / kind)


# Stopped and started again ------------------------------------------------------------------------


def test_starting_again_computes_nothing(whole):
    running.check_again(whole)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop_at(losses, "joint_distillation", 6), id="SIGTERM in round 2"),
        pytest.param(kill_before(Trainer, "_take_step", 7), id="killed warming up the re-ranker"),
        pytest.param(kill_after(searches, "write_hits", 3), id="killed between two runs"),
        pytest.param(kill_after(checkpoints, "save", 5), id="killed between two checkpoints"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, stop):
    running.check_stop(whole, tmp_path / "run", stop)


# Only what a step was handed decides it -----------------------------------------------------------

LEAVES_ALL = dict.fromkeys(STEPS, "finished")
ROUNDS = LEAVES_ALL | {"round-001": "changed", "round-002": "changed"}
SEARCHED = dict.fromkeys(STEPS, "search again")


@pytest.mark.parametrize(
    ("path", "values", "steps", "reason"),
    [
        ("joint", {"queries": 10}, ROUNDS | {"warm-up": "search again"}, "train.round-001 changed"),
        ("joint", {"retriever_rate": 0.5}, ROUNDS, "rates.retriever was 1.0, is now 0.5"),
        ("joint", {"steps": None}, ROUNDS, "steps was 4, is now not set"),
        ("joint.distillation", {"mutual": True}, ROUNDS, "loss.mutual was False, is now True"),
        ("joint.groups", {"skip": 1}, ROUNDS, "groups.values.skip was 0, is now 1"),
        ("joint.groups", {"negative_below": 0.6}, ROUNDS, "groups.values.below was 0.5, is now 0.6"),
        ("joint.groups", {"scored": 10}, ROUNDS, "scored.warm-up.train.round-001 changed"),
        ("joint.groups", {"positive_above": 0.6}, LEAVES_ALL, None),  # there are no pseudo labels
        ("joint.groups", {"depth": 25}, ROUNDS | {"warm-up": "changed"}, "depth was 20, is now 25"),
        ("warmup_reranker", {"steps": 5}, ROUNDS | {"warm-up": "changed"}, "steps was 4, is now 5"),
        ("warmup_retriever", {"queries": 9}, ROUNDS | {"warm-up": "changed"}, "train.retriever changed"),
        ("joint", {"first_query": 40}, LEAVES_ALL, None),  # 40 queries on, all are dealt as before
        ("joint", {"rounds": 1}, dict.fromkeys(STEPS[:3], "finished"), None),
        ("joint", {"rounds": 3}, LEAVES_ALL | {"round-002": "begun", "round-003": "new"}, None),
        ("retriever", {"recompute": True}, LEAVES_ALL, None),
        ("reranker", {"recompute": True}, LEAVES_ALL, None),
        ("reranker", {"dropout": 0.3}, ROUNDS | {"warm-up": "changed"}, "dropout was 0.1, is now 0.3"),
        ("", {"save_minutes": 1.0, "encode_batch": 7}, LEAVES_ALL, None),
        ("evaluation", {"measures": ["nDCG@5"]}, LEAVES_ALL, None),
        ("evaluation", {"depth": 15}, SEARCHED, "depth was 20, is now 15"),
        ("evaluation", {"init": False}, dict.fromkeys(STEPS[1:], "finished"), None),
        ("data", {"max_dev_queries": 5}, SEARCHED, "dev changed"),
    ],
)
def test_a_change_reaches_what_it_decides_and_no_more(whole, path, values, steps, reason):
    running.check_change(whole, path, values, steps, reason)


@pytest.mark.parametrize("format", ["tsv", "trec"])
def test_what_a_run_keeps_is_written_as_a_run_file(whole, tmp_path, format):
    name = "warm-up/scored.warm-up.train.round-001.npy"
    place = f"{whole.output}/{name}"
    command_line.run("hits", place, str(tmp_path / "out.run"), "--format", format, "--k", "3")
    assert read_run(tmp_path / "out.run") == {query: hits[:3] for query, hits in read(whole, name).items()}
    with pytest.raises(ValueError, match="write them as a run file: rocketqa hits .*round-001.npy OUTPUT"):
        read_run(place)


def test_depth_of_reranking_leaves_trainings_and_hits_alone(whole):
    changed = change(whole, "evaluation", rerank_depth=5)
    again = [made.place for step in running.rehearse(changed)[1].steps.values() for made in step.missing]
    assert again == [f"{step}/reranked.warm-up.dev.npy" for step in STEPS[1:]]


def test_other_queries_for_the_rounds_leave_the_warm_up_alone(whole, tmp_path, capsys):
    """Its hits for dev, the test and the re-ranker stay as they are, byte for byte and untouched."""
    settings = change(running.copied(whole, tmp_path / "run"), "joint", queries=10)
    kept = [f"warm-up/hits.{name}.npy" for name in ("dev", "test", "train.reranker")]
    times = [(tmp_path / "run" / name).stat().st_mtime_ns for name in kept]
    train(settings)
    assert running.retrained(whole, settings) == {"round-001", "round-002"}
    assert [(tmp_path / "run" / name).stat().st_mtime_ns for name in kept] == times
    assert len(read(settings, "warm-up/hits.train.round-001.tsv")) == 10
    said = capsys.readouterr().out.splitlines()
    assert "initial: finished before" in said
    assert "warm-up: searched and measured again: train.round-001 changed" in said
    assert "round-001: done again: train.round-001 changed" in said
    running.check_best(settings)


# Learning -----------------------------------------------------------------------------------------


def test_training_beats_no_training(data, tmp_path):
    fast = OptimizerSettings(learning_rate=6e-3, warmup_ratio=0.1)
    settings = running.rocketqav2(
        tmp_path / "run",
        data,
        warmup_retriever=WarmUpSettings(batch_size=20, steps=80, optimizer=fast),
        warmup_reranker=RerankerWarmUpSettings(queries=0),
        joint=JointSettings(rounds=0),
        **running.from_scratch(data),
    )
    train(settings)
    qrels = toy.collection().splits["test"].qrels
    before, after = (
        metrics.evaluate(qrels, read(settings, f"{step}/hits.test.tsv"), ["RR@10"])["RR@10"]
        for step in ("initial", "warm-up")
    )
    assert before < 0.4
    assert after > 0.7
    running.check_best(settings)


def test_joint_steps_teach_the_reranker(data, tmp_path):
    joint = JointSettings(
        rounds=1,
        batch_size=10,
        steps=40,
        optimizer=OptimizerSettings(learning_rate=5e-3, warmup_ratio=0.1),
        groups=GroupSettings(negatives=4, depth=60, sources=["random"]),
    )
    untrained = str(toy.write_best(tmp_path / "untrained") / "reranker")
    reranker = RerankerSettings(init=untrained, length=28, dropout=0.0)
    settings = running.rocketqav2(tmp_path / "run", data, reranker=reranker, joint=joint, **NOT_WARMED_UP)
    train(settings)
    first, others = [row["cross_entropy"] for row in running.log(settings) if "cross_entropy" in row]
    assert others < 0.85 * first  # the mean of 39 steps, from no training to the end
    running.check_best(settings)


@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["changes nothing", "ruins everything"])
def test_best_fits_together_where_training_does_not_help(whole, data, tmp_path, rate):
    init = f"{whole.output}/best/retriever"
    bad = OptimizerSettings(learning_rate=rate)
    settings = running.rocketqav2(
        tmp_path / "run",
        data,
        retriever=dataclasses.replace(whole.retriever, init=init),
        warmup_retriever=WarmUpSettings(batch_size=8, steps=3, optimizer=bad),
        joint=dataclasses.replace(whole.joint, rounds=1, steps=2, optimizer=bad),
        stop_on_collapse=False,
    )
    train(settings)
    running.check_best(settings)
    assert len(running.table(running.text(settings, "report.md"))) in (5, 6)


def test_without_a_warm_up_and_without_the_initial_checkpoint(data, tmp_path):
    settings = running.rocketqav2(
        tmp_path / "run",
        data,
        joint=JointSettings(rounds=1, steps=2, groups=GroupSettings(negatives=3, sources=["random"])),
        evaluation=EvaluationSettings(measures=["nDCG@5"], init=False),
        **NOT_WARMED_UP,
        **running.from_scratch(data),
    )
    train(settings)
    assert not (tmp_path / "run" / "initial").exists()
    report = running.text(settings, "report.md")
    assert "initial checkpoint" not in report
    assert "nDCG@5" in report
    for kind in ("retriever", "reranker"):
        card = running.text(settings, f"warm-up/{kind}/README.md")
        assert "The initial checkpoint, not trained." in card
        before, after = running.digests(settings, kind).values()
        assert before != after


# Pseudo labels and lists of a file ----------------------------------------------------------------


def with_pseudo(settings):
    groups = GroupSettings(
        negatives=2, depth=20, sources=["random", "pseudo"], negative_below=0.48, positive_above=0.5
    )
    return change(settings, "joint", rounds=1, groups=groups)


def test_pseudo_labels_of_unlabelled_queries(data, tmp_path, monkeypatch, capsys):
    """Half of all candidates count as answers here: nothing else about random weights is sure."""

    def fit(positives, negatives):
        return calibration.Calibration(1e6, -1e6 * float(np.median(negatives)))

    monkeypatch.setattr(calibration.Calibration, "fit", fit)
    untrained = str(toy.write_best(tmp_path / "untrained") / "reranker")
    settings = running.rocketqav2(
        tmp_path / "run",
        data,
        data=DataSettings(folder=str(data), tests=["test"], unlabelled="unlabelled"),
        reranker=RerankerSettings(init=untrained, length=28),
    )
    with running.spied() as trainers:
        train(settings := with_pseudo(settings))
    groups = trainers[f"round-001 {JOINT}"].examples
    pseudo = [group for group in groups if group.source == "pseudo"]
    assert len(groups) - len(pseudo) == 20
    assert len(pseudo) >= 5
    assert f"{len(pseudo)} pseudo, 20 undenoised groups" in capsys.readouterr().out
    assert {group.query.id for group in pseudo} <= {f"unlabelled{i}" for i in range(40, 50)}
    scored = read(settings, "warm-up/scored.warm-up.train.unlabelled.tsv")
    for group in pseudo:
        assert group.passages[0].id == scored[group.query.id][0].passage_id


def test_lists_of_a_file_count_by_their_content(whole, tmp_path, capsys):
    lines = [
        f"{query}\t\t{text}\t{int(text == 'a red dog')}\n"
        for query in ("where", "what")
        for text in ("a red dog", "a blue cat", "a green owl")
    ]
    file = tmp_path / "lists.tsv"
    file.write_text("".join(lines[:3] * 3 + lines[3:]), encoding="utf-8")
    settings = running.copied(whole, tmp_path / "run")
    settings = change(settings, "joint", rounds=1, steps=1, groups=GroupSettings(negatives=2, file=str(file)))
    with running.spied() as trainers:
        train(change(settings, "joint.groups", depth=20))
    assert len(trainers[f"round-001 {JOINT}"].examples) == 4
    assert "4 lists of 3 passages; 0 shorter ones left out" in capsys.readouterr().out
    settings = change(settings, "joint.groups", depth=20)
    assert set(running.statuses(settings).values()) == {"finished"}
    file.write_text("".join(lines), encoding="utf-8")
    assert running.statuses(settings)["round-001"] == "changed"
    assert running.statuses(settings)["warm-up"] == "finished"


def test_a_list_whose_positive_is_a_negative_is_not_trained_on_unless_asked_for(whole, tmp_path, capsys):
    """DPR's lists may have the positive among the hard negatives. A longer list has others in its place."""
    yes, twin, no, more = (
        {"title": "", "text": text} for text in ("a red dog", "A  red dog", "a cat", "an owl")
    )
    lists = [[no, more], [twin, no, more], [twin, no]]
    file = tmp_path / "lists.json"
    questions = [{"question": "where", "positive_ctxs": [yes], "hard_negative_ctxs": each} for each in lists]
    file.write_text(json.dumps(questions), encoding="utf-8")
    settings = change(running.copied(whole, tmp_path / "run"), "joint", rounds=1, steps=1)
    settings = change(settings, "joint", groups=GroupSettings(negatives=2, depth=20, file=str(file)))
    with running.spied() as trainers, pytest.warns(UserWarning, match="left out 2 negatives .* and 0 groups"):
        train(settings)
    trained = [[p.text for p in group.passages] for group in trainers[f"round-001 {JOINT}"].examples]
    assert trained == [["a red dog", "a cat", "an owl"]] * 2
    assert "2 lists of 3 passages; 1 shorter ones left out" in capsys.readouterr().out
    told = running.reasons(dataclasses.replace(settings, drop_false_negatives=False))
    assert "groups.drop_false_negatives was True, is now False" in told["round-001"]
    assert "loss.drop_false_negatives was True, is now False" in told["warm-up"]


# Refused before any work --------------------------------------------------------------------------


def sections(data: Path, **values) -> dict:
    return {"data": DataSettings(folder=str(data), **values)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: {"evaluation": EvaluationSettings(measures=["RR@10", "MRR10"])}, "measure 'MRR10'"),
        *(
            (lambda data, name=name: {"evaluation": EvaluationSettings(measures=[name])}, re.escape(name))
            for name in ("ERR@10.5", "RBP@10", "INST", "alpha_nDCG@10")
        ),
        (lambda data: sections(data.parent / "none"), "none: expected a collection"),
        (lambda data: sections(data, tests=["exam"]), "exam.query.txt: no such file"),
        (lambda data: sections(data, dev="unlabelled"), "split 'unlabelled' has no judgements"),
        (lambda data: sections(data, unlabelled="more"), "more.query.txt"),
        (lambda data: {"warmup_reranker": RerankerWarmUpSettings(negatives=60)}, "60 negatives a group"),
        (lambda data: {"joint": JointSettings(groups=GroupSettings(negatives=60))}, "60 negatives a group"),
        (lambda data: {"joint": JointSettings(groups=GroupSettings(file="no.tsv"))}, "no.tsv"),
        (lambda data: {"warmup_retriever": WarmUpSettings(batch_size=41)}, "only 40, .* lower batch_size"),
        (lambda data: {"reranker": RerankerSettings(init="tiny", length=600)}, "600"),
        (
            lambda data: {"reranker": RerankerSettings(init="package:no_such_package/model")},
            "no_such_package",
        ),
    ],
)
def test_a_mistake_is_told_before_any_work(data, tmp_path, monkeypatch, make, message):
    running.forbid(monkeypatch, running.NETWORKS)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(running.rocketqav2(tmp_path / "run", data, **make(data)))
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".safetensors"]


LIST = "q\tt\ta\t1\nq\tt\tb\t0\nq\tt\tc\t0\n"
CONTEXTS = '[{"text": "a"}], "negative_ctxs": [{"text": "b"}]'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lists.tsv", "", "lists.tsv:1: empty file"),
        ("lists.json", "[]", "lists.json: expected lists of 3 passages, .* but it has none"),
        ("lists.json", f'[{{"positive_ctxs": {CONTEXTS}}}]', 'lists.json: object 1: no "question"'),
        ("lists.json", f'[{{"question": "q", "positive_ctxs": {CONTEXTS}}}]', "longest has 2; lower joint"),
        ("lists.json", '[{"question": "q", "positive_ctxs": [{"text": "a"}]}]', "longest has 1; lower joint"),
        ("lists.tsv", LIST * 99 + LIST[:-9], "lists.tsv:299: .* ends after 2 of the 3 lines"),
        ("lists.tsv", LIST + "q" + LIST, "lists.tsv:5: not the query of line 4"),
        ("lists.tsv", LIST + "\ufeff" + LIST, "lists.tsv:4: a byte-order mark begins the line"),
        (
            "lists.jsonl",
            '{"query_id": "q", "query": "\\ud83d", "positive_passages": []}',
            "lists.jsonl:1: query 'q' has",
        ),
    ],
)
def test_a_file_of_lists_is_read_before_any_work(data, tmp_path, monkeypatch, name, content, message):
    """By the walk that computes nothing, and so by `--dry-run`."""
    running.forbid(monkeypatch, running.NETWORKS)
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    joint = JointSettings(groups=GroupSettings(negatives=2, file=str(file)))
    with pytest.raises(ValueError, match=message):
        running.rehearse(running.rocketqav2(tmp_path / "run", data, joint=joint))


def test_the_plan_counts_the_lists_of_a_file(data, tmp_path):
    """A step for every two lists that are long enough; there are 40 training queries."""
    file = tmp_path / "lists.jsonl"
    texts = [{"docid": id, "text": f"a {id}"} for id in "abc"]
    lists = [{"positive_passages": texts[:1], "negative_passages": texts[1 : 2 + n % 2]} for n in range(13)]
    lines = [{"query_id": f"q{n}", "query": "who ?", **passages} for n, passages in enumerate(lists)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    joint = JointSettings(groups=GroupSettings(negatives=2, file=str(file)), batch_size=2)
    _, plan = running.rehearse(running.rocketqav2(tmp_path / "run", data, joint=joint))
    assert plan.steps["round-001"].work.steps == 3


def test_a_retriever_cannot_be_the_reranker(whole, data, tmp_path, monkeypatch):
    """It is told before the retriever is warmed up, which may take days."""
    running.forbid(monkeypatch, running.NETWORKS)
    reranker = RerankerSettings(init=f"{whole.output}/best/retriever")
    with pytest.raises(ValueError, match="expected a CrossEncoder"):
        train(running.rocketqav2(tmp_path / "run", data, reranker=reranker))


def test_pseudo_labels_need_unlabelled_queries(data, tmp_path):
    with pytest.raises(ValueError, match="'pseudo', which needs .*data.unlabelled"):
        with_pseudo(running.rocketqav2(tmp_path, data))


def test_measuring_on_a_sample_leaves_the_training_split_whole(data, tmp_path):
    """A table row for the training split is a common check."""
    source = DataSettings(folder=str(data), tests=["train"], max_dev_queries=5, max_test_queries=5)
    run, _ = running.rehearse(running.rocketqav2(tmp_path / "run", data, data=source))
    assert [len(run.dev), len(run.evaluated["train"]), len(run.labelled)] == [5, 5, 40]
    assert run.dev.qrels.keys() == run.dev.queries.keys()
