"""The whole of RocketQAv2 on the toy collection: what a run leaves, and that it goes on after any stop."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal

import numpy as np
import paddle
import pytest
import toy
import yaml

from rocketqa_paddle import checkpoints, losses, toolkit
from rocketqa_paddle.data import dataset, formats
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.mining import miner
from rocketqa_paddle.runs import pipeline
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.index import VectorIndex, read_texts
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    DataSettings,
    EvaluationSettings,
    GroupSettings,
    JointSettings,
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmupSettings,
    RetrieverSettings,
    WarmupSettings,
)
from rocketqa_paddle.systems.rocketqav2 import run as rocketqav2
from rocketqa_paddle.training.trainer import Stopped, Trainer

STAGES = ["start", "warm-up", "round-001", "round-002"]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The settings of a run that nothing interrupted; what it printed lies in `printed`."""
    settings = toy.settings(tmp_path_factory.mktemp("whole") / "run", data)
    rocketqav2.train(settings)
    return settings


def folder_of(settings):
    return pipeline.Path(settings.output)


def outcome(settings) -> dict[str, str]:
    """What must not depend on how often a run was stopped."""
    folder = folder_of(settings)
    paths = [*folder.glob("*/*.tsv"), folder / "report.md", *folder.glob("best/*/*.jsonl")]
    texts = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}
    models = {
        str(path.parent.relative_to(folder)): checkpoints.load(path.parent).digest()
        for path in folder.glob("*/*/model.safetensors")
    }
    return texts | models | {"index": json.loads((folder / "best/index/meta.json").read_text())["model"]}


def check_best(settings) -> None:
    """`best/` is a search engine: its parts fit one another, and each is the best on dev."""
    best = folder_of(settings) / "best"
    index = VectorIndex.load(best / "index", checkpoints.load(best / "retriever").digest())
    retriever = checkpoints.load(best / "retriever", kind="dual_encoder")
    collection = toy.collection()
    texts = read_texts(best / "index", set(index.ids))
    assert texts == collection.passages
    vectors = retrieval.encode_passages(
        retriever, *zip(*((p.title, p.text) for p in texts.values()), strict=True)
    )
    np.testing.assert_allclose(index._index.reconstruct_n(0, 60), vectors, atol=1e-4)
    checkpoints.load(best / "reranker", kind="cross_encoder")

    qrels = collection.splits["dev"].qrels
    for model, file in {"retriever": "hits.dev.tsv", "reranker": "reranked.dev.tsv"}.items():
        values = {
            path.parent.name: metrics.evaluate(qrels, formats.read_run(path), ["RR@10"])["RR@10"]
            for path in folder_of(settings).glob(f"*/{file}")
            if (path.parent / model).is_dir()
        }
        chosen = {
            stage
            for stage in values
            if checkpoints.load(folder_of(settings) / stage / model).digest()
            == checkpoints.load(best / model).digest()
        }
        assert max(values.values()) in {values[stage] for stage in chosen}, (model, values, chosen)


# What a run leaves --------------------------------------------------------------------------------


def test_the_run_folder_is_whole(whole):
    folder = folder_of(whole)
    others = {f"{stage}/hits.{split}.tsv" for stage in STAGES for split in ("dev", "test")}
    others |= {f"{stage}/reranked.dev.tsv" for stage in STAGES[1:]}
    others |= {"warm-up/hits.train.reranker.tsv", "warm-up/hits.train.round-001.tsv"}
    others |= {"round-001/hits.train.round-002.tsv", *(f"{s}/scored.train.tsv" for s in STAGES[2:])}
    trained = {"start": [], **dict.fromkeys(STAGES[1:], ["retriever", "reranker"])}
    toy.check_files(folder, trained, others, ignored=r"best/[^/]*\.tsv")
    assert not (folder / "last").exists()


def test_config_yaml_holds_every_setting(whole):
    saved = yaml.safe_load((folder_of(whole) / "config.yaml").read_text())
    assert saved == dataclasses.asdict(whole)


def test_the_report_has_every_row(whole):
    text = (folder_of(whole) / "report.md").read_text()
    assert text.startswith("**test**: 10 queries over 60 passages\n")
    rows = re.findall(r"^\| (.+?) +\| (.+?) +\| (.+?) +\|$", text, flags=re.MULTILINE)
    names = [name for name, *_ in rows[1:]]
    assert rows[0] == ("system", "RR@10 (MRR@10)", "Success@5 (R@5)")
    assert names[:5] == [
        "start weights",
        "retriever, warmed up",
        "retriever, round-001",
        "retriever, round-002",
        "re-ranker, warmed up",
    ]
    assert len(set(names)) == len(names)
    qrels = toy.collection().splits["test"].qrels
    for stage, (name, *cells) in zip(STAGES, rows[1:5], strict=True):
        run = formats.read_run(folder_of(whole) / stage / "hits.test.tsv")
        values = metrics.evaluate(qrels, run, ["RR@10", "Success@5"])
        assert [float(cell.strip("*")) for cell in cells] == pytest.approx(list(values.values()), abs=6e-4), (
            name
        )
    assert "The re-rankers order the 10 best" in text


def test_the_log_has_every_stage(whole):
    rows = [json.loads(line) for line in (folder_of(whole) / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows if "loss" in row]
    assert steps == [
        (f"{stage}", step)
        for stage in (
            "warm-up retriever",
            "warm-up reranker",
            "round-001 retriever and reranker",
            "round-002 retriever and reranker",
        )
        for step in (1, 4)
    ]
    for model, stages in {"retriever": STAGES, "reranker": STAGES[1:]}.items():
        assert [row["stage"] for row in rows if f"dev/{model}/RR@10" in row] == stages
        for row in rows:
            if f"dev/{model}/RR@10" in row:
                name = "hits" if model == "retriever" else "reranked"
                run = formats.read_run(folder_of(whole) / row["stage"] / f"{name}.dev.tsv")
                expected = metrics.evaluate(toy.collection().splits["dev"].qrels, run, ["RR@10"])["RR@10"]
                assert row[f"dev/{model}/RR@10"] == pytest.approx(expected)
    assert {"cross_entropy", "kl"} <= {key for row in rows for key in row}


def test_best_is_a_search_engine(whole):
    check_best(whole)
    best = folder_of(whole) / "best"
    dual, cross = (toolkit.load_model(str(best / name)) for name in ("retriever", "reranker"))
    assert dual.matching(["red dog"], ["the red dog"]).shape == (1,)
    assert cross.matching(["red dog"], ["the red dog"]).shape == (1,)
    for name in ("retriever", "reranker"):
        assert "on dev" in (best / name / "README.md").read_text()


def test_every_stage_has_models_of_its_own(whole):
    for model in ("retriever", "reranker"):
        digests = [checkpoints.load(folder_of(whole) / stage / model).digest() for stage in STAGES[1:]]
        assert len(set(digests)) == 3


def test_rounds_use_other_training_queries(whole):
    folder = folder_of(whole)
    first = formats.read_run(folder / "warm-up" / "hits.train.round-001.tsv")
    second = formats.read_run(folder / "round-001" / "hits.train.round-002.tsv")
    assert len(first) == len(second) == 20
    assert not first.keys() & second.keys()
    scored = formats.read_run(folder / "round-001" / "scored.train.tsv")
    qrels = toy.collection().splits["train"].qrels
    for query, hits in scored.items():  # every candidate and the positive
        found = {hit.passage_id for hit in first[query]}
        assert {hit.passage_id for hit in hits} == found | set(qrels[query])


def test_starting_again_does_nothing_heavy(whole, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    before = outcome(whole)
    for owner, name in [
        (Trainer, "fit"),
        (CorpusIndex, "__init__"),
        (retrieval, "_infer"),
    ]:
        monkeypatch.setattr(owner, name, refuse)
    rocketqav2.train(whole)
    assert outcome(whole) == before
    log = (folder_of(whole) / "metrics.jsonl").read_text().splitlines()
    rocketqav2.train(dataclasses.replace(whole, save_minutes=5.0, encode_batch=8))  # may change
    assert (folder_of(whole) / "metrics.jsonl").read_text().splitlines() == log


def test_the_same_seed_gives_the_same_run(whole, data, tmp_path):
    paddle.seed(12345)  # as in another process
    again = dataclasses.replace(whole, output=str(tmp_path / "run"))
    rocketqav2.train(again)
    assert outcome(again) == outcome(whole)


# Stopped and started again ------------------------------------------------------------------------


class Killed(BaseException):
    """No `except` or `finally` of the program shall mistake this for an error."""


def stop_at(owner, name: str, number: int):
    """SIGTERM in a call of a loss; the trainer finishes the step, saves and stops."""

    def prepare(monkeypatch):
        original, calls = getattr(owner, name), []

        def stopping(*arguments, **keywords):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, stopping)
        return Stopped

    return prepare


def kill_at(owner, name: str, number: int, when: str):
    """The process dies before, or just after, a call."""

    def prepare(monkeypatch):
        original, calls = getattr(owner, name), []

        def dying(*arguments, **keywords):
            calls.append(1)
            if len(calls) == number and when == "before":
                raise Killed
            result = original(*arguments, **keywords)
            if len(calls) == number:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, dying)
        return Killed

    return prepare


def begin(whole, folder):
    """Settings of another run. It gets the vocabulary of `whole`: how that is made is tested above."""
    shutil.copytree(folder_of(whole) / "vocabulary", folder / "vocabulary")
    shutil.copy(folder_of(whole) / "config.yaml", folder)
    return dataclasses.replace(whole, output=str(folder))


def stop_and_go_on(system, whole, folder, monkeypatch, stop):
    """Stop a run of `whole`'s settings, start it again as another process would, and compare the outcomes."""
    settings = begin(whole, folder)
    paddle.seed(12345)
    with monkeypatch.context() as patch, pytest.raises(stop(patch)):
        system.train(settings)
    assert not (folder / "report.md").exists()
    paddle.seed(54321)
    system.train(settings)
    check_best(settings)
    assert outcome(settings) == outcome(whole)
    return settings


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop_at(losses, "joint_distillation", 6), id="SIGTERM in round 2"),
        pytest.param(kill_at(Trainer, "_take_step", 7, "before"), id="killed warming up the re-ranker"),
        pytest.param(kill_at(formats, "write_run_tsv", 3, "after"), id="killed between two runs"),
        pytest.param(kill_at(checkpoints, "save", 5, "after"), id="killed between two checkpoints"),
        pytest.param(kill_at(pipeline.Pipeline, "_log_dev", 4, "before"), id="killed before dev is logged"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, monkeypatch, stop):
    stop_and_go_on(rocketqav2, whole, tmp_path / "run", monkeypatch, stop)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows if "loss" in row]
    assert len(steps) == len(set(steps))
    for model, stages in {"retriever": STAGES, "reranker": STAGES[1:]}.items():
        assert [row["stage"] for row in rows if f"dev/{model}/RR@10" in row] == stages


# Learning -----------------------------------------------------------------------------------------


def test_training_beats_no_training(data, tmp_path):
    settings = toy.settings(
        tmp_path / "run",
        data,
        warmup_retriever=WarmupSettings(
            batch_size=20, steps=80, optimizer=OptimizerSettings(learning_rate=6e-3, warmup_share=0.1)
        ),
        warmup_reranker=RerankerWarmupSettings(queries=0),
        joint=JointSettings(rounds=0),
    )
    rocketqav2.train(settings)
    qrels = toy.collection().splits["test"].qrels
    values = [
        metrics.evaluate(qrels, formats.read_run(tmp_path / "run" / stage / "hits.test.tsv"), ["RR@10"])
        for stage in ("start", "warm-up")
    ]
    assert values[0]["RR@10"] < 0.4
    assert values[1]["RR@10"] > 0.7
    check_best(settings)


def test_joint_steps_teach_the_reranker(data, tmp_path):
    best = toy.write_best(tmp_path / "untrained")
    joint = JointSettings(
        rounds=1,
        batch_size=10,
        steps=40,
        optimizer=OptimizerSettings(learning_rate=5e-3, warmup_share=0.1),
        groups=GroupSettings(negatives=4, depth=60, sources=["random"]),
    )
    settings = toy.settings(
        tmp_path / "run",
        data,
        reranker=RerankerSettings(start=str(best / "reranker"), length=28, dropout=0.0),
        warmup_retriever=WarmupSettings(queries=0),
        warmup_reranker=RerankerWarmupSettings(queries=0),
        joint=joint,
    )
    rocketqav2.train(settings)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first, others = [row["cross_entropy"] for row in rows if "cross_entropy" in row]
    assert others < 0.85 * first  # the mean of 39 steps, from no training to the end
    check_best(settings)


@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["changes nothing", "ruins everything"])
def test_best_fits_together_where_training_does_not_help(whole, data, tmp_path, rate):
    start = str(folder_of(whole) / "best" / "retriever")
    bad = OptimizerSettings(learning_rate=rate)
    settings = toy.settings(
        tmp_path / "run",
        data,
        retriever=RetrieverSettings(start=start, pooling="mean", query_length=12, passage_length=20),
        warmup_retriever=WarmupSettings(batch_size=8, steps=3, optimizer=bad),
        joint=JointSettings(
            rounds=1, batch_size=4, steps=2, optimizer=bad, groups=GroupSettings(negatives=3, depth=20)
        ),
    )
    rocketqav2.train(settings)
    check_best(settings)
    rows = re.findall(r"^\| (re.+?) +\|", (tmp_path / "run/report.md").read_text(), flags=re.MULTILINE)
    assert len(rows) == len(set(rows)), rows


def test_without_warming_up(data, tmp_path):
    settings = toy.settings(
        tmp_path / "run",
        data,
        warmup_retriever=WarmupSettings(queries=0),
        warmup_reranker=RerankerWarmupSettings(queries=0),
        joint=JointSettings(rounds=1, steps=2, groups=GroupSettings(negatives=3, sources=["random"])),
        evaluation=EvaluationSettings(measures=["nDCG@5"], start=False),
    )
    rocketqav2.train(settings)
    assert not (tmp_path / "run" / "start").exists()
    assert "start weights" not in (tmp_path / "run/report.md").read_text()
    check = [
        checkpoints.load(tmp_path / "run" / stage / "retriever").digest()
        for stage in ("warm-up", "round-001")
    ]
    assert check[0] != check[1]


# Pseudo labels ------------------------------------------------------------------------------------


def with_pseudo(settings, **changes):
    groups = GroupSettings(
        negatives=2, depth=20, sources=["random", "pseudo"], negative_below=0.48, positive_above=0.5
    )
    joint = dataclasses.replace(settings.joint, rounds=1, groups=groups)
    return dataclasses.replace(settings, joint=joint, **changes)


def test_pseudo_labels_of_unlabelled_queries(data, tmp_path, monkeypatch, capsys):
    groups = []
    original = Trainer.__init__

    def remember(self, stage, networks, examples, *rest, **keywords):
        groups.extend(examples if "round" in stage else [])
        original(self, stage, networks, examples, *rest, **keywords)

    monkeypatch.setattr(Trainer, "__init__", remember)
    # Half of all candidates count as answers: nothing else about random weights is sure.
    monkeypatch.setattr(
        miner.Calibration,
        "fit",
        lambda positives, negatives: miner.Calibration(1e6, -1e6 * float(np.median(negatives))),
    )
    start = str(toy.write_best(tmp_path / "untrained") / "reranker")
    settings = toy.settings(
        tmp_path / "run",
        data,
        data=DataSettings(folder=str(data), tests=["test"], unlabelled="unlabelled"),
        reranker=RerankerSettings(start=start, length=28),
    )
    rocketqav2.train(with_pseudo(settings))
    sources = [group.source for group in groups]
    assert sources.count("random") == 20
    assert sources.count("pseudo") >= 5
    assert f"{sources.count('pseudo')} pseudo, 20 random groups" in capsys.readouterr().out
    unlabelled = {f"unlabelled{i}" for i in range(40, 50)}
    assert {group.query.id for group in groups if group.source == "pseudo"} <= unlabelled
    scored = formats.read_run(tmp_path / "run" / "round-001" / "scored.unlabelled.tsv")
    for group in groups:
        if group.source == "pseudo":
            assert group.passages[0].id == scored[group.query.id][0].passage_id


# Refused before any work --------------------------------------------------------------------------


def refused(make, message):
    """The mistake is told before a network is made or a passage is read by one."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [(CorpusIndex, "__init__"), (Trainer, "fit"), (retrieval, "_infer")]:
            patch.setattr(owner, name, lambda *_, **__: pytest.fail("work began before the mistake was told"))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            rocketqav2.train(make())


def test_pseudo_without_a_split(data, tmp_path):
    refused(lambda: with_pseudo(toy.settings(tmp_path, data)), "'pseudo', which needs .*data.unlabelled")


def test_an_unlabelled_split_that_is_not_there(data, tmp_path):
    source = DataSettings(folder=str(data), unlabelled="more")
    refused(lambda: with_pseudo(toy.settings(tmp_path, data, data=source)), "more.query.txt")


def test_an_unknown_measure(data, tmp_path):
    evaluation = EvaluationSettings(measures=["RR@10", "MRR10"])
    refused(lambda: toy.settings(tmp_path, data, evaluation=evaluation), "unknown measure 'MRR10'")


@pytest.mark.parametrize("measure", ["ERR@10.5", "RBP@10", "INST", "alpha_nDCG@10"])
def test_a_measure_that_cannot_be_computed(data, tmp_path, measure):
    refused(
        lambda: toy.settings(tmp_path, data, evaluation=EvaluationSettings(measures=[measure])),
        re.escape(measure),
    )


def test_a_missing_folder_and_a_missing_split(data, tmp_path):
    refused(lambda: toy.settings(tmp_path / "run", tmp_path / "none"), "none: expected a collection")
    refused(
        lambda: toy.settings(tmp_path, data, data=DataSettings(folder=str(data), tests=["exam"])),
        "exam.query.txt: no such file",
    )
    assert not (tmp_path / "run").exists()


def test_a_split_without_judgements(data, tmp_path):
    source = DataSettings(folder=str(data), dev="unlabelled")
    refused(lambda: toy.settings(tmp_path, data, data=source), "split 'unlabelled' has no judgements")


@pytest.mark.parametrize("section", ["warmup_reranker", "joint"])
def test_more_negatives_than_passages(data, tmp_path, section):
    changes = {
        "warmup_reranker": {"warmup_reranker": RerankerWarmupSettings(negatives=60)},
        "joint": {"joint": JointSettings(groups=GroupSettings(negatives=60))},
    }[section]
    refused(lambda: toy.settings(tmp_path, data, **changes), "60 negatives a group")


@pytest.mark.parametrize("wrong", ["kind", "length", "nowhere"])
def test_a_reranker_that_cannot_start(whole, data, tmp_path, wrong):
    """Before the retriever is warmed up, which may take days."""
    change, message = {
        "kind": ({"start": str(folder_of(whole) / "best" / "retriever")}, "expected a CrossEncoder"),
        "length": ({"start": "tiny", "length": 600}, "600"),
        "nowhere": ({"start": "package:no_such_package/model"}, "no_such_package"),
    }[wrong]
    refused(lambda: toy.settings(tmp_path / "run", data, reranker=RerankerSettings(**change)), message)


def test_measuring_on_a_sample_leaves_the_training_split_whole(data, tmp_path):
    """A table row for the training split is a common check."""
    source = DataSettings(folder=str(data), tests=["train"], max_dev_queries=5, max_test_queries=5)
    loaded = dataset.load(source)
    assert len(loaded.evaluated["dev"].queries) == len(loaded.evaluated["train"].queries) == 5
    assert set(loaded.evaluated["dev"].qrels) == set(loaded.evaluated["dev"].queries)
    assert len(loaded.train.queries) == 40
    run = rocketqav2.JointRun(toy.settings(tmp_path / "run", data, data=source))
    assert len(run.train_split.queries) == 40
