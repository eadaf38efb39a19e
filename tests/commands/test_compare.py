"""Systems side by side: one warm-up, one budget of steps, one table; what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import running
import toy
import yaml
from running import read

from rocketqa_paddle import checkpoints, losses
from rocketqa_paddle.commands import cli
from rocketqa_paddle.commands import compare as command
from rocketqa_paddle.commands.comparison.settings import CompareSettings, folder_name, row_settings
from rocketqa_paddle.commands.comparison.walk import share_out, walk
from rocketqa_paddle.evaluation import metrics, plots
from rocketqa_paddle.networks import forward
from rocketqa_paddle.runs.collapse import CollapseCheck
from rocketqa_paddle.runs.folder import HEAD
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.settings import DataSettings, OptimizerSettings, RerankerWarmUpSettings, RunSettings
from rocketqa_paddle.systems import SYSTEMS
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
TRAINED = {  # by row: its trainings, in order
    "RocketQAv2": ["round-001 retriever and reranker", "round-002 retriever and reranker"],
    "AR2": [f"round-{number} {kind}" for number in ("001", "002") for kind in ("reranker", "retriever")],
    "RocketQA": ["step3 retriever", "step4 retriever"],
    "PAIR": ["pretraining retriever", "finetuning retriever"],
}


def make(output, data, **changes) -> CompareSettings:
    """Return settings of a comparison that takes some seconds. `changes` replace whole sections."""
    shared = running.rocketqa(output, data)
    sections = {
        **{name: getattr(shared, name) for name in ("data", "retriever", "reranker")},
        "evaluation": dataclasses.replace(shared.evaluation, init=True),
        "warmup_retriever": dataclasses.replace(running.rocketqav2(output, data).warmup_retriever, steps=12),
        "warmup_reranker": RerankerWarmUpSettings(  # long enough to tell a few positives from candidates
            batch_size=4, steps=40, negatives=3, optimizer=OptimizerSettings(learning_rate=3e-3)
        ),
        "steps": STEPS,
        "systems": ROWS,
    }
    return CompareSettings(output=str(output), **(sections | changes))


def compare(settings) -> None:
    """Compare, without the pictures of the single runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_curves", lambda lines, path: path.write_bytes(b"a picture"))
        command.compare(settings)


@pytest.fixture(scope="module")
def encoded():
    """The digests of the models that encoded the corpus; `whole` fills it."""
    return []


@pytest.fixture(scope="module")
def trainers():
    """The trainers by their names, in order; `whole` fills it."""
    return {}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, encoded, trainers):
    """The settings of a comparison that nothing interrupted."""
    settings = make(tmp_path_factory.mktemp("whole") / "run", data)
    original = forward.encode_parts

    def spy(checkpoint, *columns, **keywords):
        encoded.append(checkpoint.digest())
        return original(checkpoint, *columns, **keywords)

    with pytest.MonkeyPatch.context() as patch, running.spied() as made:
        patch.setattr(forward, "encode_parts", spy)
        compare(settings)
    trainers.update(made)
    return settings


@pytest.fixture
def copied(whole, tmp_path):
    """The same comparison in a folder that a test may change."""
    return running.copied(whole, tmp_path / "run")


def row_of(settings, row):
    """Return settings by which helpers find the files of a row."""
    return dataclasses.replace(settings, output=str(Path(settings.output) / folder_name(row)))


def best_step(whole, row, kind) -> str:
    """Return the step, of the warm-up or of a row, whose model is best on dev; of equal ones the first."""
    folder, values = Path(whole.output), {}
    own = [f"{folder_name(row)}/{name.split()[0]}" for name in TRAINED[row]] if row in ROWS else ["initial"]
    runs = {"retriever": "hits.", "reranker": "reranked."}[kind]
    for step in dict.fromkeys(["warm-up", *own]):
        for piece, record in json.loads((folder / step / "step.json").read_text()).items():
            if piece.startswith(runs) and "measures" in record:
                values[step] = record["measures"]["RR@10"]
    return max(values, key=values.get)


def trained(row) -> list[str]:
    """The full names of a row's trainings, in order."""
    return [f"{folder_name(row)}/{name}" for name in TRAINED[row]]


def rehearse(settings):
    """Walk through a comparison without computing anything.

    Returns:
        The plan, and by row the run and the settings that its system is handed.
    """
    handed, rows = {}, {row: row_settings(settings, row) for row in settings.systems}

    def spy(run, own, system):
        handed[run.row] = run, own  # the second call replaces the first, which only counts trainings
        system.train(run, own)

    with pytest.MonkeyPatch.context() as patch:
        for name, system in SYSTEMS.items():
            patch.setitem(SYSTEMS, name, dataclasses.replace(system, train=partial(spy, system=system)))
        run = Run(settings)
        plan = run.rehearse(partial(walk, settings=settings, rows=share_out(run, settings, rows)))
    return plan, {row: handed[folder_name(row)] for row in rows}


# What it does -------------------------------------------------------------------------------------


def test_every_row_is_a_whole_run(whole):
    folder = Path(whole.output)
    rows = {folder_name(row) for row in ROWS}
    files = {"config.yaml", "report.md", "curves.png", "steps.md", "metrics.jsonl"}
    assert {path.name for path in folder.iterdir()} == {*files, "corpus", "initial", "warm-up", "best", *rows}
    for row in ["", *rows]:
        for part in ("best/retriever", "best/index", "best/engine.json", "steps.md", "metrics.jsonl"):
            assert (folder / row / part).exists(), (row, part)
    for row in ["warm-up", *rows]:
        assert (folder / row / "report.md").exists(), row
    assert "| initial checkpoint " in running.text(whole, "warm-up/report.md")
    assert yaml.safe_load(running.text(whole, "config.yaml")) == dataclasses.asdict(whole)
    assert (folder / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("row", ["", *ROWS])
def test_every_row_has_a_search_engine_of_its_best_models(whole, row):
    """A re-ranker is among them only where it helps, and the row's report says what was decided."""
    run = row_of(whole, row)
    record = running.best_record(run)
    for kind in ("retriever", "reranker"):
        step = best_step(whole, row, kind)
        if kind in record:
            kept = checkpoints.load(Path(run.output) / "best" / kind)
            assert record[kind]["step"] == step
            assert kept.digest() == checkpoints.load(Path(whole.output) / step / kind).digest()
        if kind == "retriever":
            assert len(VectorIndex.load(Path(run.output) / "best/index", kept.digest())) == 60
    told = (
        f"best/ {'has' if 'reranker' in record else 'leaves out'} the re-ranker of {step}: on dev, RR@10 is"
    )
    assert told in running.text(whole, f"{folder_name(row) if row else 'warm-up'}/report.md")


@pytest.mark.parametrize("row", ROWS)
def test_all_systems_begin_with_the_same_models(whole, trainers, row):
    """They take the warm-up's models as they are, and keep no copies of them."""
    names = trained(row)
    for kind in ("retriever", "reranker"):
        if mine := [trainers[name] for name in names if kind in trainers[name].began_with]:
            running.check_weights(mine[0].began_with[kind], Path(whole.output) / "warm-up" / kind)
    warmed_up = running.digests(whole)
    kept = running.digests(row_of(whole, row))
    assert {Path(place).parent.name for place in kept} == {name.split()[0] for name in TRAINED[row]}
    assert not {warmed_up[f"warm-up/{kind}"] for kind in ("retriever", "reranker")} & {*kept.values()}


def test_nothing_but_the_warm_up_and_the_rows_is_trained(whole, trainers):
    expected = ["warm-up retriever", "warm-up reranker", *(name for row in ROWS for name in trained(row))]
    assert list(trainers) == expected


@pytest.mark.parametrize("row", ROWS)
def test_all_systems_take_as_many_steps(whole, row):
    taken: dict[str, int] = {}
    for line in running.log(row_of(whole, row)):
        taken[line["stage"]] = max(taken.get(line["stage"], 0), line.get("step", 0))
    assert sum(taken.values()) == STEPS
    assert {stage.split("/")[0] for stage in taken} == {folder_name(row)}  # losses and measures
    if row == "AR2":  # in the proportion of its settings
        assert [taken[f"ar2/round-001 {kind}"] for kind in ("reranker", "retriever")] == [1, 3]


def test_all_systems_have_the_same_data_networks_and_seed(whole):
    _, handed = rehearse(whole)
    assert list(handed) == list(ROWS)
    shared = {field.name for field in dataclasses.fields(RunSettings)} - {"evaluation"}
    for run, own in handed.values():
        for settings in (run.settings, own):  # of the run, and with the steps that are shared out
            assert {n: getattr(settings, n) for n in shared} == {n: getattr(whole, n) for n in shared}
            assert settings.evaluation == dataclasses.replace(whole.evaluation, init=False, bm25=False)


def test_the_corpus_is_encoded_once_for_the_warm_up(whole, encoded):
    """Its vectors are those with which every system's first step searches, and those of `best/`."""
    folder = Path(whole.output)
    assert encoded.count(checkpoints.load(folder / "warm-up/retriever").digest()) == 1
    assert len(encoded) == 1 + 1 + 4 * 2  # the initial checkpoint, the warm-up, two trainings of every row


@pytest.mark.parametrize(
    "name",
    [
        "hits.train.round-001",  # RocketQAv2 and AR2 are dealt the same queries
        *("hits.train.labelled", "hits.train.unlabelled"),  # RocketQA searches for the unlabelled ones later
        "scored.warm-up.train.labelled",
        "scored.warm-up.train.unlabelled",
    ],
)
def test_what_several_rows_search_and_score_is_shared(whole, name):
    [file] = [
        path for path in (Path(whole.output) / "warm-up").iterdir() if re.match(rf"{name}\..*npy", path.name)
    ]
    assert re.fullmatch(rf"{name}\.[0-9a-f]{{16}}\.npy", file.name) and file.stat().st_size


# What it tells ------------------------------------------------------------------------------------


def tables(text) -> dict[str, list[list[str]]]:
    """The cells of every table, by the paragraph before it."""
    found = {}
    for title, body in re.findall(r"^(.+)\n\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
        lines = [[cell.strip(" *") for cell in line.strip("|\n").split("|")] for line in body.splitlines()]
        found[title] = [lines[0], *lines[2:]]
    return found


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("retrievers", "{retriever}/hits.test.tsv"),
        ("re-rankers over the 10 best of these", "{reranker}/reranked.{retriever}.test.tsv"),
    ],
)
def test_the_report_holds_what_the_runs_give(whole, what, file):
    head, *rows = tables(running.text(whole, "report.md"))[f"**test**, 10 queries over 60 passages: {what}"]
    assert head == ["system", "RR@10 (MRR@10)", "Success@5 (R@5)", "RR@10 against warm-up"]
    assert [row[0] for row in rows] == ["warm-up", *ROWS]
    qrels, found = toy.collection().splits["test"].qrels, {}
    for row, *cells in rows:
        best = {kind: best_step(whole, row, kind) for kind in ("retriever", "reranker")}
        if "reranked" in file:
            best["retriever"] = best["retriever"].replace("/", ".")
        found[row] = read(whole, file.format(**best))
        values = metrics.evaluate(qrels, found[row], running.MEASURES)
        assert [float(cell) for cell in cells[:2]] == pytest.approx(list(values.values()), abs=6e-4)
        each = (metrics.evaluate_queries(qrels, found[r], ["RR@10"])["RR@10"] for r in (row, "warm-up"))
        result = metrics.compare(*each)
        told = f"{result.difference:+.3f} (p = {result.p_value:.2g})" if row != "warm-up" else ""
        assert cells[2] == told


def test_dev_after_every_step_and_what_was_computed(whole):
    found = tables(running.text(whole, "report.md"))
    title = "**dev** after every step, and so many optimizer steps after the warm-up: "
    assert [row[0] for row in found[f"{title}retrievers"][1:]] == [
        "warm-up",
        *("RocketQAv2, round-001 (4 steps)", "RocketQAv2, round-002 (8 steps)"),
        *("AR2, round-001 (4 steps)", "AR2, round-002 (8 steps)"),
        *("RocketQA, step 3 (M_D1) (4 steps)", "RocketQA, step 4 (M_D2) (8 steps)"),
        *("PAIR, stage 1 (pre-training) (4 steps)", "PAIR, stage 2 (fine-tuning) (8 steps)"),
    ]
    rerankers = found[f"{title}re-rankers over the best of the warm-up's retriever"]
    assert len(rerankers) == 1 + 1 + 2 + 2  # RocketQA and PAIR train none
    costs = {row: cells for row, *cells in found["Computed after the warm-up, about:"][1:]}
    assert {row: cells[0] for row, cells in costs.items()} == dict.fromkeys(ROWS, "8")
    texts = {row: int(cells[1].replace(",", "")) for row, cells in costs.items()}
    assert texts == {"RocketQAv2": 8 * 4 * 5, "AR2": 6 * 4 * 5, "RocketQA": 8 * 8 * 4, "PAIR": 8 * 8 * 4}


# Again --------------------------------------------------------------------------------------------


def test_again_computes_nothing(whole, monkeypatch):
    before = running.text(whole, "report.md")
    running.forbid(monkeypatch, running.NETWORKS)
    compare(whole)
    assert running.text(whole, "report.md") == before


def test_another_baseline_and_a_changed_row(copied, whole):
    """The changed row alone is trained again; the reports tell of it."""
    released = {**ROWS["AR2"]["adversarial"], "loss": {"normalization": "released"}}
    rows = {**ROWS, "AR2": {"system": "ar2", "adversarial": released}}
    with running.spied() as trainers:
        compare(dataclasses.replace(copied, systems=rows, baseline="AR2"))
    assert {name.split("/")[0] for name in trainers} == {"ar2"}
    assert running.retrained(whole, copied) == set()
    for row in ("RocketQAv2", "RocketQA", "PAIR"):
        assert running.retrained(row_of(whole, row), row_of(copied, row)) == set()
    assert running.retrained(row_of(whole, "AR2"), row_of(copied, "AR2")) == {"round-001", "round-002"}
    head, *lines = tables(running.text(copied, "report.md"))[
        "**test**, 10 queries over 60 passages: retrievers"
    ]
    assert head[-1] == "RR@10 against AR2"
    assert [line[0] for line in lines] == ["AR2", "warm-up", "RocketQAv2", "RocketQA", "PAIR"]


@pytest.mark.parametrize(
    ("stop", "steps_left"),
    [
        pytest.param(running.kill_before(Trainer, "_take_step", 5), [1, 3], id="killed in the second round"),
        pytest.param(running.stop_at(losses, "ar2_retriever", 2), [1], id="terminated in the first round"),
    ],
)
def test_a_stopped_comparison_goes_on(whole, copied, stop, steps_left):
    """Stopped in the second row: what was done is not done again, the table is the same."""
    for row in ("AR2", "RocketQA", "PAIR"):
        shutil.rmtree(row_of(copied, row).output)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(stop(patch)):
        compare(copied)
    assert not (Path(copied.output) / "report.md").exists()
    with running.spied() as trainers:
        compare(copied)
    assert not [name for name in trainers if name.startswith(("warm-up", "rocketqav2"))]
    taken = [len(trainer.rates) for name, trainer in trainers.items() if name.startswith("ar2/")]
    assert taken[: len(steps_left)] == steps_left
    assert running.text(copied, "report.md") == running.text(whole, "report.md")
    for run in (lambda settings: settings, *(partial(row_of, row=row) for row in ROWS)):
        assert running.outcome(run(copied)) == running.outcome(run(whole))
        assert running.logged(run(copied)) == running.logged(run(whole))
    assert not (Path(copied.output) / "last").exists()


def test_a_dry_run_tells_the_steps_of_every_row_and_writes_nothing(data, tmp_path, capsys):
    settings = make(tmp_path / "run", data)
    command.compare(settings, dry_run=True)
    told = capsys.readouterr().out
    for row in ROWS:
        for training in trained(row):
            assert training.split()[0] in told
    assert not Path(settings.output).exists()


# Refused before any work --------------------------------------------------------------------------


def one(system, **values) -> dict:
    return {"systems": {"mine": {"system": system, **values}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": {}}, "systems is empty"),
        ({"systems": {"mine": {}}}, r"systems.mine: system=None, expected one of \['rocketqa'"),
        (one("bm25"), "system='bm25'"),
        (one(["ar2"]), r"system=\['ar2'\], expected one of"),
        (one("rocketqa", step1=3), "systems.mine: step1 is 3, expected settings by name"),
        (one("ar2", adversarial=None), "adversarial is empty, expected settings by name"),
        (
            one("ar2", retriever={"shared": False}),
            "systems.mine: retriever is no setting of this system alone: set it once for all systems",
        ),
        (one("ar2", joint={}), "joint is no setting .* ar2 has"),
        (one("ar2", adversarial={"round": 3}), "systems.mine: .*round"),
        (one("ar2", adversarial={"rounds": "many"}), "systems.mine: .*rounds"),
        ({"systems": {"AR2": {"system": "ar2"}, "ar2!": {"system": "ar2"}}}, "another row needs the folder"),
        ({"systems": {"Warm up": {"system": "ar2"}}}, "the comparison itself needs the folder 'warm-up'"),
        (
            {"systems": {"Last": {"system": "ar2"}}},
            "systems.Last: the comparison itself needs the folder 'last'",
        ),
        ({"systems": {"::": {"system": "ar2"}}}, "a name without a letter or digit"),
        ({"systems": {1: {"system": "ar2"}}}, "systems.1: the name is a number"),
        (
            one("ar2", adversarial={"reranker": None}),
            "systems.mine: adversarial.reranker is empty, expected settings by name",
        ),
        (one("ar2", ict={"passages": 9}), "systems.mine: ict is not for a comparison"),
        (one("rocketqa", step2={"queries": 7}), "systems.mine: step2 is not for a comparison"),
        ({"baseline": "BM25"}, "baseline='BM25', expected warm-up or one of"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 10}, "^AR2: steps=10 cannot be shared out .* a multiple of 8"),
        (one("rocketqav2", joint={"rounds": 0}), "^mine: nothing is trained after the warm-up"),
        (one("rocketqav2", joint={"groups": {"file": "nowhere.tsv"}}), "^mine: .*nowhere.tsv"),
        (one("rocketqav2", joint={"groups": {"negatives": 60, "depth": 70}}), "^mine: 60 negatives a group"),
        (one("ar2", adversarial={"groups": {"negatives": 60, "depth": 70}}), "^mine: 60 negatives a group"),
        (one("rocketqa", denoising=DENOISING, step3={"batch_size": 26}), "^mine: step3: 26 examples a step"),
    ],
)
def test_a_mistake_is_told_before_any_work(data, tmp_path, monkeypatch, changes, message):
    running.forbid(monkeypatch, running.NETWORKS)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare(make(tmp_path / "run", data, **changes))
    assert [*(tmp_path / "run").glob("*")] in ([], [tmp_path / "run" / "corpus"])


def test_folders_of_other_runs_are_refused(whole, data, tmp_path, monkeypatch):
    running.forbid(monkeypatch, running.NETWORKS)
    with pytest.raises(ValueError, match="another system, or version, began this folder"):
        running.train(running.ar2(whole.output, data))
    with pytest.raises(ValueError, match="ar2 holds other files"):
        compare(row_of(whole, "AR2"))
    other = running.ar2(tmp_path / "run", data)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(other)))
    with pytest.raises(ValueError, match="another system, or version, began this folder"):
        compare(make(tmp_path / "run", data))


def test_files_in_the_place_of_a_rows_step_are_refused(data, tmp_path, monkeypatch):
    running.forbid(monkeypatch, running.NETWORKS)
    settings = make(tmp_path / "run", data)
    (tmp_path / "run" / "ar2" / "round-001").mkdir(parents=True)
    (tmp_path / "run" / "ar2" / "round-001" / "notes.txt").touch()
    config = yaml.safe_dump(dataclasses.asdict(settings))
    (tmp_path / "run" / "config.yaml").write_text(f"{HEAD}\n{config}")
    with pytest.raises(ValueError, match="^AR2: .*ar2/round-001 is not a step's"):
        compare(settings)


def test_a_row_that_has_another_system_now_is_trained_again(whole):
    plan, _ = rehearse(dataclasses.replace(whole, systems={**ROWS, "AR2": ROWS["RocketQAv2"]}))
    changed = {name for name, step in plan.steps.items() if step.status == "changed"}
    assert changed == {"ar2/round-001", "ar2/round-002"}


def test_a_system_that_cannot_be_trained_is_named(copied, monkeypatch):
    """No candidate is so surely wrong, which shows only when the re-ranker has judged.

    What the new row needs of the warm-up is found with the index of `best/`.
    """
    running.forbid(monkeypatch, [*running.TRAINING, (forward, "encode_parts")])
    hopeless = {**ROWS["RocketQA"], "denoising": {**DENOISING, "negative_below": 1e-6}}
    with pytest.raises(ValueError, match="^Mine: no candidate has a probability below 1e-06"):
        compare(dataclasses.replace(copied, systems={"Mine": hopeless}))
    [found] = (Path(copied.output) / "warm-up").glob("hits.train.labelled.*.npy")
    assert found.stat().st_size


# Settings of the rows -----------------------------------------------------------------------------


def test_a_row_whose_model_collapses_is_named(copied, monkeypatch, capsys):
    """It ends the comparison, as the other rows would be compared with it; the flag goes on."""
    monkeypatch.setattr(CollapseCheck, "_noted", lambda self, model, run: "x" * model.step.startswith("ar2/"))
    told = "ar2/round-001: the retriever has collapsed: x"
    with pytest.raises(ValueError, match=f"^AR2: {told}.*--stop_on_collapse false"):
        compare(copied)
    capsys.readouterr()
    compare(dataclasses.replace(copied, stop_on_collapse=False))
    assert told in capsys.readouterr().out


def test_rounds_get_queries_that_the_warm_up_had_not(data, tmp_path):
    """25 labelled queries: 8 and 4 for the warm-up, the next ones for the rounds."""
    rows = {
        "RocketQAv2": {"system": "rocketqav2", "joint": {**ROWS["RocketQAv2"]["joint"], "queries": 6}},
        "AR2": {"system": "ar2", "adversarial": {**ROWS["AR2"]["adversarial"], "queries": 6}},
    }
    settings = make(tmp_path / "run", data, systems=rows)
    settings = running.change(settings, "warmup_retriever", queries=8)
    settings = running.change(settings, "warmup_reranker", queries=4)
    deal = Run(settings).deal()
    used = {*deal.take("retriever", 8).queries, *deal.take("reranker", 4).queries}
    assert len(used) == 12
    plan, _ = rehearse(settings)
    searched = {name: hits for wanted in plan.searches.values() for name, hits in wanted.items()}
    for row in map(folder_name, rows):
        names = ("warm-up/hits.train.round-001.", f"{row}/round-001/hits.train.round-002")
        [first], [second] = ([name for name in searched if name.startswith(part)] for part in names)
        dealt = [{*searched[name].queries.queries} for name in (first, second)]
        assert [len(part) for part in dealt] == [6, 6]
        assert not used & set.union(*dealt)
        assert not dealt[0] & dealt[1]


def test_the_folder_of_a_row():
    assert folder_name("AR2, the paper's equation") == "ar2-the-paper-s-equation"
    assert folder_name("对比 AR2") == "对比-ar2"


def test_without_unlabelled_queries_rocketqa_spends_all_on_step_3(data, tmp_path):
    settings = make(tmp_path / "run", data, systems={"RocketQA": ROWS["RocketQA"]})
    _, handed = rehearse(running.change(settings, "data", unlabelled=None))
    assert handed["RocketQA"][1].step3.steps == STEPS


def test_the_default_compares_all_four(data, tmp_path):
    settings = CompareSettings(output=str(tmp_path / "run"), data=DataSettings(folder=str(data)), steps=400)
    assert {entry["system"] for entry in settings.systems.values()} == set(SYSTEMS)
    settings = dataclasses.replace(make(tmp_path / "run", data), systems=settings.systems, steps=400)
    made = {row: own for row, (_, own) in rehearse(settings)[1].items()}
    assert {row: type(run) for row, run in made.items()} == {row: SYSTEMS[row].settings for row in made}
    adversarial = made["ar2"].adversarial
    assert (adversarial.rounds, adversarial.reranker.steps, adversarial.retriever.steps) == (10, 10, 30)


def test_the_command_line(tmp_path, capsys):
    output = tmp_path / "out"
    (tmp_path / "my.yaml").write_text(
        f"output: {output}\ndata: {{folder: nowhere}}\nsystems: {{A: {{system: ar2}}}}\n"
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", "--config", str(tmp_path / "my.yaml"), "--steps", "40"])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("rocketqa: nowhere: expected a collection")
    assert not output.exists()
    with pytest.raises(SystemExit):
        cli.parse(["compare", "--help"])
    assert "--baseline" in capsys.readouterr().out
