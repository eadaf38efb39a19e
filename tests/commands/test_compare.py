"""Systems side by side: one warm-up, one budget of steps, one table; what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import toy
import yaml
from test_rocketqa import forbid
from test_rocketqav2 import folder_of

from rocketqa_paddle import checkpoints
from rocketqa_paddle.commands import cli, compare
from rocketqa_paddle.data import formats
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    SYSTEMS,
    CompareSettings,
    DataSettings,
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmupSettings,
    RetrieverSettings,
    RunSettings,
)
from rocketqa_paddle.systems.rocketqav2.run import JointRun
from rocketqa_paddle.training.trainer import Trainer

FAST = {"learning_rate": 1e-3}
STEPS = 8
DENOISING = {"depth": 20, "scored": 10, "negatives": 2, "negative_below": 0.5, "positive_above": 0.51}
ROWS = {
    "RocketQAv2": {
        "system": "rocketqav2",
        "joint": {
            "rounds": 2,
            "queries": 20,
            "batch_size": 4,
            "optimizer": FAST,
            "groups": {"negatives": 3, "depth": 20, "sources": ["random"]},
        },
    },
    "AR2": {
        "system": "ar2",
        "adversarial": {
            "rounds": 2,
            "queries": 20,
            "reranker": {"steps": 1, "batch_size": 4, "optimizer": FAST},
            "retriever": {"steps": 3, "batch_size": 4, "optimizer": FAST},
            "groups": {"negatives": 3, "depth": 20},
        },
    },
    "RocketQA": {
        "system": "rocketqa",
        "denoising": DENOISING,
        "step3": {"batch_size": 8, "optimizer": FAST},
        "step4": {"batch_size": 8, "optimizer": FAST},
    },
    "PAIR": {
        "system": "pair",
        "denoising": DENOISING,
        "pretraining": {"batch_size": 8, "optimizer": FAST},
        "finetuning": {"batch_size": 8, "optimizer": FAST},
    },
}
LAST = {"RocketQAv2": "round-002", "AR2": "round-002", "RocketQA": "step4", "PAIR": "finetuning"}


def make(output, data, **changes) -> CompareSettings:
    """Of a comparison that takes some seconds. `changes` replace whole sections."""
    shared = toy.settings(output, data)
    sections = {name: getattr(shared, name) for name in ("warmup_retriever", "evaluation")}
    sections |= {
        "data": DataSettings(folder=str(data), tests=["test"], unlabelled="train", max_train_queries=25),
        "retriever": RetrieverSettings(
            start="tiny", shared=True, pooling="mean", query_length=12, passage_length=20
        ),
        "reranker": RerankerSettings(start="tiny", length=28, dropout=0.0),
        "warmup_reranker": RerankerWarmupSettings(  # long enough to tell a few positives from candidates
            batch_size=4, steps=40, negatives=3, optimizer=OptimizerSettings(learning_rate=3e-3)
        ),
        "steps": STEPS,
        "systems": ROWS,
    }
    return CompareSettings(output=str(output), **(sections | changes))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The settings of a comparison that nothing interrupted."""
    settings = make(tmp_path_factory.mktemp("whole") / "run", data)
    compare.compare(settings)
    return settings


def folder(settings, row):
    return folder_of(settings) / CompareSettings.folder_name(row)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def digest(path) -> str:
    return checkpoints.load(path).digest()


# What it does -------------------------------------------------------------------------------------


def test_every_row_is_a_whole_run(whole):
    assert {path.name for path in folder_of(whole).iterdir()} == {
        *(".lock", "config.yaml", "report.md", "curves.png", "warm-up"),
        *(CompareSettings.folder_name(row) for row in ROWS),
    }
    for row in ["warm-up", *ROWS]:
        for part in ("best/retriever", "best/reranker", "best/index", "report.md", "config.yaml"):
            assert (folder(whole, row) / part).exists(), (row, part)
    assert yaml.safe_load((folder_of(whole) / "config.yaml").read_text()) == dataclasses.asdict(whole)


@pytest.mark.parametrize("row", ROWS)
def test_all_systems_begin_with_the_same_models(whole, row):
    first = {"RocketQA": ("step1", "step2"), "PAIR": ("teacher_retriever", "teacher_reranker")}.get(
        row, ("warm-up", "warm-up")
    )
    for model, stage in zip(("retriever", "reranker"), first, strict=True):
        theirs = digest(folder(whole, "warm-up") / "warm-up" / model)
        assert digest(folder(whole, row) / stage / model) == theirs
    assert digest(folder(whole, row) / LAST[row] / "retriever") != digest(
        folder(whole, "warm-up") / "warm-up" / "retriever"
    )


@pytest.mark.parametrize("row", ROWS)
def test_all_systems_take_as_many_steps(whole, row):
    rows = [json.loads(line) for line in (folder(whole, row) / "metrics.jsonl").read_text().splitlines()]
    taken: dict[str, int] = {}
    for line in rows:
        taken[line["stage"]] = max(taken.get(line["stage"], 0), line.get("step", 0))
    assert sum(taken.values()) == STEPS
    if row == "AR2":  # in the proportion of its settings
        assert [taken[f"round-001 {model}"] for model in ("reranker", "retriever")] == [1, 3]


@pytest.mark.parametrize("row", ROWS)
def test_all_systems_have_the_same_data_and_seed(whole, row):
    ours, theirs = (yaml.safe_load((folder(whole, r) / "config.yaml").read_text()) for r in (row, "warm-up"))
    for name in {field.name for field in dataclasses.fields(RunSettings)} - {"output", "evaluation"}:
        assert (
            {**ours[name], "start": None} == {**theirs[name], "start": None}
            if name
            in (
                "retriever",
                "reranker",
            )
            else ours[name] == theirs[name]
        )
    assert {**ours["evaluation"], "start": None} == {**theirs["evaluation"], "start": None}


def test_the_warm_ups_index_is_used_by_all(data, tmp_path, monkeypatch):
    """Its vectors are those of every system's first stage: the corpus is encoded once for all of them."""
    encoded, original = [], CorpusIndex.__init__

    def spy(self, checkpoint, passages, **keywords):
        encoded.append(checkpoint.digest())
        original(self, checkpoint, passages, **keywords)

    monkeypatch.setattr(CorpusIndex, "__init__", spy)
    settings = make(tmp_path / "run", data, systems={row: ROWS[row] for row in ("RocketQAv2", "AR2")})
    compare.compare(settings)
    warm = digest(tmp_path / "run/warm-up/warm-up/retriever")
    assert encoded.count(warm) == 1
    assert len(encoded) == 1 + 1 + 2 + 2  # start weights, warm-up, two rounds each


# What it tells ------------------------------------------------------------------------------------


def tables(text) -> dict[str, list[list[str]]]:
    """The cells of every table, by the paragraph before it."""
    found = {}
    for title, body in re.findall(r"^(.+)\n\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
        lines = [[cell.strip(" *") for cell in line.strip("|\n").split("|")] for line in body.splitlines()]
        found[title] = [lines[0], *lines[2:]]
    return found


def test_the_report_holds_what_the_runs_give(whole):
    found = tables((folder_of(whole) / "report.md").read_text())
    qrels = toy.collection().splits["test"].qrels
    title = "**test**, 10 queries over 60 passages"
    for name, of in {
        f"{title}: retrievers": lambda run, best: run / best["retriever"] / "hits.test.tsv",
        f"{title}: re-rankers over the 10 best of these": lambda run, best: (
            run / "best" / f"{best['reranker']}.over.{best['retriever']}.test.tsv"
        ),
    }.items():
        head, *rows = found[name]
        assert head == ["system", "RR@10 (MRR@10)", "Success@5 (R@5)", "RR@10 against warm-up"]
        assert [row[0] for row in rows] == ["warm-up", *ROWS]
        runs = {
            row: formats.read_run(of(folder(whole, row), read(folder(whole, row) / "best/stages.json")))
            for row in ["warm-up", *ROWS]
        }
        for row, *cells in rows:
            values = metrics.evaluate(qrels, runs[row], ["RR@10", "Success@5"])
            assert [float(cell) for cell in cells[:2]] == pytest.approx(list(values.values()), abs=6e-4)
            if row == "warm-up":
                assert cells[2] == ""
            else:
                result = metrics.compare(qrels, runs[row], runs["warm-up"], "RR@10")
                assert cells[2] == f"{result.difference:+.3f} (p = {result.p_value:.2g})"


def test_dev_after_every_stage(whole):
    found = tables((folder_of(whole) / "report.md").read_text())
    names = [
        row[0]
        for row in found["**dev** after every stage, and so many steps after the warm-up: retrievers"][1:]
    ]
    assert names == [
        "warm-up",
        *("RocketQAv2, round-001 (4 steps)", "RocketQAv2, round-002 (8 steps)"),
        *("AR2, round-001 (4 steps)", "AR2, round-002 (8 steps)"),
        *("RocketQA, step 3 (M_D1) (4 steps)", "RocketQA, step 4 (M_D2) (8 steps)"),
        *("PAIR, stage 1 (pre-training) (4 steps)", "PAIR, stage 2 (fine-tuning) (8 steps)"),
    ]
    title = "**dev** after every stage, and so many steps after the warm-up: re-rankers"
    title += " over the best of the warm-up's retriever"
    assert len(found[title]) == 1 + 1 + 2 + 2  # RocketQA and PAIR train none
    costs = found["Computed after the warm-up, about:"]
    assert [row[:2] for row in costs[1:]] == [[row, "8"] for row in ROWS]
    texts = {row: int(cells[0].replace(",", "")) for row, _, *cells in costs[1:]}
    assert texts == {"RocketQAv2": 8 * 4 * 5, "AR2": 6 * 4 * 5, "RocketQA": 8 * 8 * 4, "PAIR": 8 * 8 * 4}
    assert (folder_of(whole) / "curves.png").stat().st_size > 1000


# Again --------------------------------------------------------------------------------------------


def test_again_computes_nothing(whole, monkeypatch):
    before = (folder_of(whole) / "report.md").read_text()
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    compare.compare(whole)
    assert (folder_of(whole) / "report.md").read_text() == before


def test_another_baseline_and_a_changed_row(data, tmp_path, monkeypatch):
    rows = {row: ROWS[row] for row in ("RocketQAv2", "AR2")}
    settings = make(tmp_path / "run", data, systems=rows)
    compare.compare(settings)
    old = digest(tmp_path / "run" / "rocketqav2" / "round-002" / "retriever")
    trained, fit = [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: (trained.append(self.stage), fit(self))[1])
    released = {**ROWS["AR2"]["adversarial"], "loss": {"normalization": "released"}}
    rows = {**rows, "AR2": {"system": "ar2", "adversarial": released}}
    compare.compare(dataclasses.replace(settings, systems=rows, baseline="AR2"))
    assert {stage.split()[0] for stage in trained} == {"round-001", "round-002"}
    assert len(trained) == 4  # both models of both rounds of AR2, and nothing else
    assert digest(tmp_path / "run" / "rocketqav2" / "round-002" / "retriever") == old
    found = tables((tmp_path / "run" / "report.md").read_text())
    head, *lines = found["**test**, 10 queries over 60 passages: retrievers"]
    assert head[-1] == "RR@10 against AR2"
    assert [line[0] for line in lines] == ["AR2", "warm-up", "RocketQAv2"]


def test_two_processes(data, tmp_path):
    rows = {row: ROWS[row] for row in ("RocketQAv2", "AR2")}
    settings = make(tmp_path / "run", data, systems=rows)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings)), encoding="utf-8")
    command = toy.FLEETRUN.with_name("rocketqa")
    done = toy.run(
        *(toy.FLEETRUN, "--nproc_per_node", "2", "--log_dir", tmp_path / "log"),
        *(command, "compare", "--config", "my.yaml"),
        cwd=tmp_path,
    )
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(log[-3000:] for log in logs)
    assert (tmp_path / "run" / "report.md").read_text().strip() in logs[0]
    assert "| system" not in logs[1]
    assert (folder(settings, "AR2") / "round-002" / "retriever").is_dir()


# Refused before any work --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "systems is empty"),
        ({"systems": {"mine": {}}}, r"systems.mine: system=None, expected one of \['rocketqa'"),
        ({"systems": {"mine": {"system": "bm25"}}}, "system='bm25'"),
        ({"systems": {"mine": {"system": ["ar2"]}}}, r"system=\['ar2'\], expected one of"),
        (
            {"systems": {"mine": {"system": "rocketqa", "step1": 3}}},
            "systems.mine: step1 is 3, expected settings by name",
        ),
        ({"systems": {"mine": {"system": "ar2", "adversarial": None}}}, "adversarial is None"),
        (
            {"systems": {"mine": {"system": "ar2", "retriever": {"shared": False}}}},
            "systems.mine: retriever is no setting of this system alone: set it once for all systems",
        ),
        ({"systems": {"mine": {"system": "ar2", "joint": {}}}}, "joint is no setting .* ar2 has"),
        (
            {"systems": {"mine": {"system": "ar2", "adversarial": {"round": 3}}}},
            "systems.mine: .*round",
        ),
        (
            {"systems": {"mine": {"system": "ar2", "adversarial": {"rounds": "many"}}}},
            "systems.mine: .*rounds",
        ),
        ({"systems": {"AR2": {"system": "ar2"}, "ar2!": {"system": "ar2"}}}, "another row needs the folder"),
        ({"systems": {"Warm up": {"system": "ar2"}}}, "another row needs the folder 'warm-up'"),
        ({"systems": {"::": {"system": "ar2"}}}, "a name without a letter or digit"),
        ({"systems": {1: {"system": "ar2"}}}, "systems.1: the name is a number"),
        (
            {"systems": {"mine": {"system": "ar2", "adversarial": {"reranker": None}}}},
            "systems.mine.adversarial: reranker is None, expected settings by name",
        ),
        (
            {"systems": {"mine": {"system": "ar2", "cloze": {"passages": 9}}}},
            "systems.mine: cloze is not for a comparison",
        ),
        (
            {"systems": {"mine": {"system": "rocketqa", "step2": {"queries": 7}}}},
            "systems.mine: step2 is not for a comparison",
        ),
        ({"baseline": "BM25"}, "baseline='BM25', expected warm-up or one of"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 10}, "systems.AR2: steps=10 cannot be shared out .* a multiple of 8"),
        (
            {"systems": {"mine": {"system": "rocketqav2", "joint": {"rounds": 0}}}},
            "nothing is trained after the warm-up",
        ),
    ],
)
def test_wrong_settings_are_refused(data, tmp_path, monkeypatch, changes, message):
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    with pytest.raises(ValueError, match=message):
        compare.compare(make(tmp_path / "run", data, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("joint", "error", "message"),
    [
        ({"groups": {"file": "nowhere.tsv"}}, FileNotFoundError, "^Mine: .*nowhere.tsv"),
        ({"groups": {"negatives": 60, "depth": 70}}, ValueError, "^Mine: 60 negatives a group"),
    ],
)
def test_a_row_that_cannot_be_is_told_before_the_warm_up(data, tmp_path, monkeypatch, joint, error, message):
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    settings = make(tmp_path / "run", data, systems={"Mine": {"system": "rocketqav2", "joint": joint}})
    with pytest.raises(error, match=message):
        compare.compare(settings)
    assert not (tmp_path / "run").exists()


def test_a_row_of_another_system_is_told_before_the_warm_up(whole, monkeypatch):
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    rows = {**ROWS, "AR2": ROWS["RocketQAv2"]}
    with pytest.raises(ValueError, match="^AR2: .*a run of another system"):
        compare.compare(dataclasses.replace(whole, systems=rows))


def test_rounds_get_queries_that_the_warm_up_had_not(data, tmp_path):
    """25 labelled queries: 8 and 4 for the warm-up, the next ones for the rounds."""
    warm = {
        name: dataclasses.replace(getattr(make(tmp_path, data), name), queries=count)
        for name, count in {"warmup_retriever": 8, "warmup_reranker": 4}.items()
    }
    rows = {
        "RocketQAv2": {"system": "rocketqav2", "joint": {**ROWS["RocketQAv2"]["joint"], "queries": 6}},
        "AR2": {"system": "ar2", "adversarial": {**ROWS["AR2"]["adversarial"], "queries": 6}},
    }
    settings = make(tmp_path / "run", data, systems=rows, **warm)
    first = JointRun(compare._warmup_settings(settings))
    used = {*first.queries["retriever"], *first.queries["reranker"]}
    assert len(used) == 12
    for row in rows:
        run = compare.RUNS[rows[row]["system"]](compare._system_settings(settings, row))
        dealt = [set(run.queries[stage]) for stage in run.rounds]
        assert [len(part) for part in dealt] == [6, 6]
        assert not used & set.union(*dealt)
        assert not dealt[0] & dealt[1]


def test_the_folder_of_a_row(data):
    assert CompareSettings.folder_name("AR2, the paper's equation") == "ar2-the-paper-s-equation"
    assert CompareSettings.folder_name("对比 AR2") == "对比-ar2"


def test_the_folder_of_a_run_is_refused(whole):
    with pytest.raises(ValueError, match="another system, or version, began this folder"):
        compare.compare(dataclasses.replace(whole, output=str(folder(whole, "AR2"))))


def test_a_system_that_cannot_be_trained_is_named(data, tmp_path):
    hopeless = {**ROWS["RocketQA"], "denoising": {**DENOISING, "negative_below": 1e-6}}
    settings = make(tmp_path / "run", data, systems={"Mine": hopeless})
    with pytest.raises(ValueError, match="^Mine: no candidate has a probability below 1e-06"):
        compare.compare(settings)


def test_without_unlabelled_queries_rocketqa_spends_all_on_step_3(data, tmp_path):
    settings = make(tmp_path / "run", data, systems={"RocketQA": ROWS["RocketQA"]})
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, unlabelled=None))
    assert compare._system_settings(settings, "RocketQA").step3.steps == STEPS


def test_the_default_compares_all_four(data, tmp_path):
    settings = CompareSettings(output=str(tmp_path), data=DataSettings(folder=str(data)), steps=400)
    for row, entry in settings.systems.items():
        assert type(compare._system_settings(settings, row)) is SYSTEMS[entry["system"]]
    assert {entry["system"] for entry in settings.systems.values()} == set(SYSTEMS)
    steps = compare._system_settings(settings, "ar2").adversarial
    assert (steps.rounds, steps.reranker.steps, steps.retriever.steps) == (10, 10, 30)


def test_the_command_line(tmp_path, capsys):
    output = tmp_path / "out"
    (tmp_path / "my.yaml").write_text(
        f"output: {output}\ndata: {{folder: nowhere}}\nsystems: {{A: {{system: ar2}}}}\n"
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", "--config", str(tmp_path / "my.yaml"), "--steps", "40"])
    assert stopped.value.code == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .startswith("rocketqa: nowhere: expected a collection")
    )
    assert not output.exists()
    with pytest.raises(SystemExit):
        cli.parse(["compare", "--help"])
    assert "--baseline" in capsys.readouterr().out
