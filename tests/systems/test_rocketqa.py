"""The whole of RocketQA on the toy collection: what a run leaves, what a change repeats, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pytest
import toy
import yaml
from test_rocketqav2 import check_best, folder_of, kill_at, outcome, stop_and_go_on, stop_at

from rocketqa_paddle import checkpoints, losses
from rocketqa_paddle.data import formats
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.mining import miner
from rocketqa_paddle.networks import parameters
from rocketqa_paddle.runs import pipeline
from rocketqa_paddle.runs.stages import Selection
from rocketqa_paddle.runtime.storage import locked
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    AugmentedStepSettings,
    DataSettings,
    DenoisedStepSettings,
    DenoisingSettings,
    EvaluationSettings,
    FirstRerankerSettings,
    FirstRetrieverSettings,
    OptimizerSettings,
    RerankerSettings,
    RetrieverSettings,
    RocketQASettings,
)
from rocketqa_paddle.systems.rocketqa import run as rocketqa
from rocketqa_paddle.training.trainer import Trainer

STEPS = ["step1", "step2", "step3", "step4"]
RETRIEVERS = ["step1", "step3", "step4"]
MEASURES = ["RR@10", "Success@5"]
FAST = OptimizerSettings(learning_rate=1e-3)


def sections(data) -> dict:
    """Settings of both systems with a re-ranker as their teacher. The data: 25 labelled, 15 unlabelled."""
    return {
        "data": DataSettings(folder=str(data), tests=["test"], unlabelled="train", max_train_queries=25),
        "retriever": RetrieverSettings(
            start="tiny", shared=True, pooling="mean", query_length=12, passage_length=20
        ),
        "reranker": RerankerSettings(start="tiny", length=28, dropout=0.0),
        "evaluation": EvaluationSettings(depth=20, rerank_depth=10, measures=MEASURES, start=False),
        "denoising": DenoisingSettings(
            depth=20, scored=10, negatives=2, negative_below=0.3, positive_above=0.51
        ),
    }


RETRIEVER = FirstRetrieverSettings(batch_size=8, steps=4, optimizer=FAST)
RERANKER = FirstRerankerSettings(  # long and fast enough to tell a few positives from candidates
    batch_size=4, steps=40, negatives=3, loss="list", optimizer=OptimizerSettings(learning_rate=3e-3)
)


def make(output, data, **changes) -> RocketQASettings:
    """Of a run that goes through every step in a second or two. `changes` replace whole sections."""
    steps = {
        "step1": RETRIEVER,
        "step2": RERANKER,
        "step3": DenoisedStepSettings(batch_size=8, steps=4, optimizer=FAST),
        "step4": AugmentedStepSettings(batch_size=8, steps=4, optimizer=FAST),
    }
    return RocketQASettings(output=str(output), **(sections(data) | steps | changes))


@pytest.fixture(scope="module")
def groups():
    """Filled by `whole`: what each step of it trained on, by name."""
    return {}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, groups):
    """The settings of a run that nothing interrupted."""
    settings = make(tmp_path_factory.mktemp("whole") / "run", data)
    with pytest.MonkeyPatch.context() as patch:
        remember_groups(patch, groups)
        rocketqa.train(settings)
    return settings


def remember_groups(patch, groups) -> None:
    original = Trainer.__init__

    def remember(self, stage, networks, examples, *rest, **keywords):
        groups[stage.split()[0]] = list(examples)
        original(self, stage, networks, examples, *rest, **keywords)

    patch.setattr(Trainer, "__init__", remember)


@pytest.fixture
def copied(whole, tmp_path):
    """The same run in a folder that a test may change."""
    shutil.copytree(folder_of(whole), tmp_path / "run")
    return dataclasses.replace(whole, output=str(tmp_path / "run"))


def change(settings, section, **values):
    return dataclasses.replace(
        settings, **{section: dataclasses.replace(getattr(settings, section), **values)}
    )


def models(settings) -> dict[str, str]:
    """Digest of every step's model."""
    return {
        path.parent.parent.name: checkpoints.load(path.parent).digest()
        for path in folder_of(settings).glob("step?/*/model.safetensors")
    }


def read(settings, name):
    return formats.read_run(folder_of(settings) / name)


def forbid(patch, *places) -> None:
    """What must not happen again."""
    for owner, name in places:
        patch.setattr(owner, name, lambda *_, _name=name, **__: pytest.fail(f"{_name}: computed again"))


def table(text) -> dict[str, list[float]]:
    rows = re.findall(r"^\| (re.+?) +\| \**([\d.]+)\** +\| \**([\d.]+)\** +\|$", text, flags=re.MULTILINE)
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: [float(value) for value in values] for name, *values in rows}


def measured(settings, files, split) -> dict[str, list[float]]:
    qrels = toy.collection().splits[split].qrels
    values = {name: metrics.evaluate(qrels, read(settings, file), MEASURES) for name, file in files.items()}
    return {name: pytest.approx(list(value.values()), abs=6e-4) for name, value in values.items()}


# What a run leaves --------------------------------------------------------------------------------


def test_the_run_folder_is_whole(whole):
    folder = folder_of(whole)
    trained = {step: ["reranker" if step == "step2" else "retriever"] for step in STEPS}
    others = {f"{step}/hits.{split}.tsv" for step in RETRIEVERS for split in ("dev", "test")}
    others |= {"step1/hits.train.labelled.tsv", "step3/hits.train.unlabelled.tsv", "step2/reranked.dev.tsv"}
    others |= {"step2/scored.step1.train.labelled.tsv", "step2/scored.step3.train.unlabelled.tsv"}
    toy.check_files(folder, trained, others, ignored=r"best/step2\.over\.")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dataclasses.asdict(whole)
    assert len(set(models(whole).values())) == 4
    check_best(whole)


def test_the_tables_hold_what_the_runs_give(whole):
    folder = folder_of(whole)
    titles = dict(
        zip(STEPS, ("step 1 (M_D0)", "step 2 (M_C)", "step 3 (M_D1)", "step 4 (M_D2)"), strict=True)
    )
    dev = {f"retriever, {titles[step]}": f"{step}/hits.dev.tsv" for step in RETRIEVERS}
    dev[f"re-ranker, {titles['step2']}"] = "step2/reranked.dev.tsv"
    assert table((folder / "stages.md").read_text()) == measured(whole, dev, "dev")
    test = {f"retriever, {titles[step]}": f"{step}/hits.test.tsv" for step in RETRIEVERS}
    for path in folder.glob("best/*.over.*.tsv"):
        over = path.name.split(".")[2]
        test[f"re-ranker over {titles[over]}"] = f"best/{path.name}"
    assert f"re-ranker over {titles['step1']}" in test
    text = (folder / "report.md").read_text()
    assert table(text) == measured(whole, test, "test")
    assert text.startswith("**test**: 10 queries over 60 passages\n")
    assert f"{titles['step3']} against retriever, {titles['step1']}: RR@10" in text
    assert f"{titles['step4']} against retriever, {titles['step3']}: RR@10" in text


def test_cards_tell_data_and_dev_measures(whole, groups):
    pseudo = len(groups["step4"]) - 25
    data = {"step1": "25 random", "step2": "25 random", "step3": "25 denoised"}
    data["step4"] = f"25 denoised, {pseudo} pseudo"
    for step in STEPS:
        model, file = ("reranker", "reranked") if step == "step2" else ("retriever", "hits")
        card = (folder_of(whole) / step / model / "README.md").read_text()
        values = metrics.evaluate(
            toy.collection().splits["dev"].qrels, read(whole, f"{step}/{file}.dev.tsv"), MEASURES
        )
        assert f"on {len(groups[step])} groups ({data[step]})." in card
        assert f"On dev: RR@10 {values['RR@10']:.3f}, Success@5 {values['Success@5']:.3f}." in card
        assert f"Data: {whole.data.folder}." in card


def test_groups_keep_to_the_thresholds(whole, groups):
    """No negative is at or above its threshold or a labelled positive; a pseudo positive is the best."""
    scored = {
        "denoised": read(whole, "step2/scored.step1.train.labelled.tsv"),
        "pseudo": read(whole, "step2/scored.step3.train.unlabelled.tsv"),
    }
    hits = {
        "denoised": read(whole, "step1/hits.train.labelled.tsv"),
        "pseudo": read(whole, "step3/hits.train.unlabelled.tsv"),
    }
    qrels = toy.collection().splits["train"].qrels
    assert not hits["denoised"].keys() & hits["pseudo"].keys()
    labelled = {i: qrels[i] for i in hits["denoised"]}
    fitted = miner.calibrate(scored["denoised"], labelled, whole.seed)
    judged = accepted = 0
    for group in groups["step3"] + groups["step4"]:
        positive, *negatives = [passage.id for passage in group.passages]
        probability = {
            hit.passage_id: fitted.probability(hit.score) for hit in scored[group.source][group.query.id]
        }
        assert group.labels == (1, 0, 0)
        assert len({positive, *negatives}) == 3
        assert all(probability.get(negative, 0.0) < 0.3 for negative in negatives)
        accepted += sum(value >= 0.3 for i, value in probability.items() if i != positive)
        found = {hit.passage_id for hit in hits[group.source][group.query.id]}
        assert set(negatives) <= found
        judged += sum(negative in probability for negative in negatives)
        if group.source == "denoised":
            assert labelled[group.query.id].keys() == {positive}
        else:
            assert probability[positive] == max(probability.values()) > 0.51
    assert judged > len(groups["step4"])  # not all from deeper ranks
    assert accepted > len(groups["step4"])  # there was something to leave out
    assert [group.source for group in groups["step3"]] == ["denoised"] * 25
    assert {group.source for group in groups["step4"]} == {"denoised", "pseudo"}
    assert groups["step4"][:25] == groups["step3"]


# Stopped and started again ------------------------------------------------------------------------


def test_starting_again_computes_nothing(whole, monkeypatch):
    before = outcome(whole)
    log = (folder_of(whole) / "metrics.jsonl").read_text()
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    rocketqa.train(whole)
    rocketqa.train(dataclasses.replace(whole, save_minutes=5.0, encode_batch=8))  # may change
    assert outcome(whole) == before
    assert (folder_of(whole) / "metrics.jsonl").read_text() == log


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop_at(losses, "in_batch", 6), id="SIGTERM in step 3"),
        pytest.param(kill_at(formats, "write_run_tsv", 2, "after"), id="killed between hits files"),
        pytest.param(kill_at(formats, "write_run_tsv", 5, "before"), id="killed scoring candidates"),
        pytest.param(kill_at(checkpoints, "save", 4, "after"), id="killed after step 3 is saved"),
        pytest.param(kill_at(pipeline.Pipeline, "_log_dev", 3, "before"), id="killed before dev is logged"),
        pytest.param(kill_at(pipeline.Pipeline, "complete_best", 1, "after"), id="killed before the report"),
    ],
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(whole, tmp_path, monkeypatch, stop):
    settings = stop_and_go_on(rocketqa, whole, tmp_path / "run", monkeypatch, stop)
    assert logged(settings) == logged(whole)
    assert not (tmp_path / "run" / "last").exists()


def logged(settings) -> list[tuple]:
    """What the log has, in order, without times."""
    rows = [json.loads(line) for line in (folder_of(settings) / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row.get("step"), *sorted(key for key in row if "dev/" in key)) for row in rows]


# A change repeats what it decides -----------------------------------------------------------------


def test_a_setting_of_step3_repeats_steps_3_and_4_alone(whole, copied, capsys):
    rocketqa.train(change(copied, "step3", steps=5))
    before, after = models(whole), models(copied)
    assert {step for step in STEPS if before[step] != after[step]} == {"step3", "step4"}
    said = capsys.readouterr().out
    for line in (
        "step1: finished before",
        "step2: finished before",
        "step3: done again: step3.steps was 4, is 5",
    ):
        assert line in said.splitlines()
    assert "step4: done again: stage step3 changed" in said.splitlines()
    assert logged(copied) == [
        (s, 5 if (s, n) == ("step3 retriever", 4) else n, *k) for s, n, *k in logged(whole)
    ]
    check_best(copied)
    rocketqa.train(copied)  # and back
    assert outcome(copied) == outcome(whole)


@pytest.mark.parametrize("section", ["evaluation", "data"])
def test_what_is_measured_is_searched_again_without_training(whole, copied, monkeypatch, capsys, section):
    values = {"evaluation": {"depth": 15}, "data": {"tests": ["test", "train"]}}[section]
    changed = change(copied, section, **values)
    with monkeypatch.context() as patch:
        forbid(patch, (Trainer, "fit"))
        rocketqa.train(changed)
    assert models(changed) == models(whole)
    splits = ["test"] if section == "evaluation" else ["test", "train"]
    for step in RETRIEVERS:
        for split in ["dev", *splits]:
            hits = read(changed, f"{step}/hits.{split}.tsv")
            assert {len(found) for found in hits.values()} == {changed.evaluation.depth}
    assert (folder_of(changed) / "report.md").read_text().count("| system") == len(splits)
    assert logged(changed)[-1][0] == "step4"
    assert len(logged(changed)) == len(logged(whole))
    assert "step1: searched and measured again: " in capsys.readouterr().out
    check_best(changed)


def test_other_measures_reach_every_table(copied, monkeypatch):
    """Nothing is to be computed for them; the tables and the log have them all the same."""
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"))
    rocketqa.train(change(copied, "evaluation", measures=["nDCG@5", "RR@10"]))
    for name in ("report.md", "stages.md"):
        assert "nDCG@5" in (folder_of(copied) / name).read_text(), name


def test_a_card_tells_the_dev_measures_of_now(copied):
    """Of other dev queries, or another depth: what was measured before would contradict it."""
    changed = change(copied, "data", max_dev_queries=5)
    rocketqa.train(changed)
    run = rocketqa.RocketQARun(changed)
    for step in RETRIEVERS:
        [line] = re.findall(
            r"^On dev: .*$",
            (folder_of(changed) / step / "retriever" / "README.md").read_text(),
            flags=re.MULTILINE,
        )
        value = metrics.evaluate(run.split("dev").qrels, read(changed, f"{step}/hits.dev.tsv"), ["RR@10"])
        assert f"RR@10 {value['RR@10']:.3f}," in line


def test_until_a_stage_and_on_equals_one_run(whole, tmp_path, capsys):
    settings = dataclasses.replace(whole, output=str(tmp_path / "run"))
    rocketqa.train(settings, Selection(until_stage="step2"))
    assert "ended after step2" in capsys.readouterr().out
    assert not any((tmp_path / "run" / name).exists() for name in ("step3", "report.md"))
    rocketqa.train(settings, Selection("step3", "step3"))
    rocketqa.train(settings, Selection(from_stage="step4"))
    assert outcome(settings) == outcome(whole)
    assert (tmp_path / "run/stages.md").read_text() == (folder_of(whole) / "stages.md").read_text()
    check_best(settings)


def test_from_a_stage_takes_earlier_ones_as_they_are(whole, copied, capsys):
    changed = change(change(copied, "step1", steps=9), "step3", steps=5)
    rocketqa.train(changed, Selection(from_stage="step3"))
    assert {s for s in STEPS if models(whole)[s] != models(changed)[s]} == {"step3", "step4"}
    said = capsys.readouterr().out
    assert "step1: done again" not in said
    check_best(changed)
    rocketqa.train(changed, Selection(dry_run=True))  # without --from-stage it is seen
    assert "step1 would be done again: step1.steps was 4, is 9" in capsys.readouterr().out


def test_from_a_stage_with_another_test_split(copied, monkeypatch):
    """Steps 1 and 3, taken as they are, have no hits of it: told before step 4 is trained, or searched."""
    trained, fit = [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: (trained.append(self.stage), fit(self)))
    changed = change(change(copied, "data", tests=["test", "train"]), "step4", steps=5)
    try:
        rocketqa.train(changed, Selection(from_stage="step4"))
    except (ValueError, FileNotFoundError) as error:
        assert trained == [], f"told after training: {error}"
    else:
        assert (folder_of(changed) / "report.md").read_text().count("| system") == 2


def test_from_a_stage_after_one_that_is_not_finished(whole, tmp_path):
    settings = dataclasses.replace(whole, output=str(tmp_path / "run"))
    rocketqa.train(settings, Selection(until_stage="step1"))
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="stage step2 is not finished: leave out --from-stage"):
            rocketqa.train(settings, Selection(from_stage="step3", dry_run=dry_run))


def test_a_dry_run_writes_nothing(whole, copied, tmp_path, capsys):
    rocketqa.train(dataclasses.replace(whole, output=str(tmp_path / "new")), Selection(dry_run=True))
    assert not (tmp_path / "new").exists()
    rows = re.findall(r"^\| (step\d) .*? \| (\w[\w ]*?) +\|", capsys.readouterr().out, flags=re.MULTILINE)
    assert rows == [(step, "new") for step in STEPS]
    before = {path: path.stat().st_mtime_ns for path in folder_of(copied).rglob("*")}
    rocketqa.train(change(copied, "step4", steps=9), Selection("step2", dry_run=True))
    assert {path: path.stat().st_mtime_ns for path in folder_of(copied).rglob("*")} == before
    said = capsys.readouterr().out
    rows = re.findall(r"^\| (step\d) .*? \| (\w[\w ]*?) +\|", said, flags=re.MULTILINE)
    assert rows == [(step, "changed" if step == "step4" else "finished") for step in STEPS]
    assert "step4 would be done again: step4.steps was 4, is 9" in said


# Which queries ------------------------------------------------------------------------------------


def test_labelled_queries_are_no_unlabelled_ones(whole):
    run = rocketqa.RocketQARun(whole)
    assert run.notes == ["train: 25 of 40 unlabelled queries are labelled training queries, too: left out"]
    assert len(run.unlabelled.queries) == 15
    assert not run.unlabelled.queries.keys() & run.train_split.queries.keys()
    assert not run.unlabelled.qrels


def test_without_unlabelled_queries_it_ends_with_step3(whole, copied, monkeypatch):
    shutil.rmtree(folder_of(copied) / "step4")
    forbid(monkeypatch, (Trainer, "fit"))
    settings = change(copied, "data", unlabelled=None)
    assert [stage.name for stage in rocketqa.RocketQARun(settings).stages()] == STEPS[:3]
    rocketqa.train(settings)
    assert models(settings) == {step: models(whole)[step] for step in STEPS[:3]}
    assert "step 4" not in (folder_of(settings) / "report.md").read_text()
    check_best(settings)


# Other settings -----------------------------------------------------------------------------------


def spied(settings, monkeypatch, selection) -> dict:
    """The groups of every stage that a run trains, with the digest of the weights it starts from."""
    seen, original = {}, pipeline.Pipeline.trained

    def trained(self, stage, networks, groups, loss, stretch, **keywords):
        start = next(iter(networks.values())).digest()
        built = groups()
        seen[stage] = (start, built)
        return original(self, stage, networks, lambda: built, loss, stretch, **keywords)

    monkeypatch.setattr(pipeline.Pipeline, "trained", trained)
    rocketqa.train(settings, selection)
    return seen


@pytest.mark.parametrize("start", ["start", "step1"])
def test_step3_without_denoising(copied, monkeypatch, start):
    settings = change(copied, "step3", denoise=False, start=start)
    begun, groups = spied(settings, monkeypatch, Selection(until_stage="step3"))["step3"]
    assert (begun == models(copied)["step1"]) == (start == "step1")
    assert [group.source for group in groups] == ["random"] * 25
    hits = read(settings, "step1/hits.train.labelled.tsv")
    for group in groups:
        best = {hit.passage_id for hit in hits[group.query.id][:10]}
        assert {passage.id for passage in group.passages[1:]} <= best


@pytest.mark.parametrize("start", ["start", "step1", "step3"])
def test_step4_begins_where_it_is_told(copied, monkeypatch, start):
    settings = change(copied, "step4", start=start, steps=2)
    begun, _ = spied(settings, monkeypatch, Selection())["step4"]
    assert (
        begun == {"start": rocketqa.RocketQARun(settings).start_retriever().digest(), **models(copied)}[start]
    )


def test_a_reranker_that_is_trained_already(whole, copied, monkeypatch):
    start = str(folder_of(whole) / "step2" / "reranker")
    settings = change(change(copied, "step2", queries=0), "reranker", start=start)
    seen = spied(settings, monkeypatch, Selection())
    assert list(seen) == ["step3", "step4"]
    assert models(settings) == models(whole)  # the same re-ranker makes the same data
    assert "not trained" in (folder_of(settings) / "step2/reranker/README.md").read_text()


def test_negatives_of_bm25_in_step1(copied, monkeypatch):
    settings = change(copied, "step1", candidates="bm25", negatives=2)
    _, groups = spied(settings, monkeypatch, Selection(until_stage="step1"))["step1"]
    found = read(settings, "step1/bm25.tsv")
    assert len(found) == len(groups) == 25
    for group in groups:
        hits = {hit.passage_id for hit in found[group.query.id]}
        negatives = {passage.id for passage in group.passages[1:]}
        assert len(negatives) == 2
        assert negatives <= hits or len(hits - {group.passages[0].id}) < 2


def test_the_start_weights_are_measured_where_asked(copied, monkeypatch):
    forbid(monkeypatch, (Trainer, "fit"))
    rocketqa.train(change(copied, "evaluation", start=True))
    for name in ("report.md", "stages.md"):
        assert "start weights" in (folder_of(copied) / name).read_text()
    check_best(copied)


@pytest.mark.parametrize(
    "gone",
    [
        "step3/retriever",
        "step2/reranker",
        "step1/hits.dev.tsv",
        "step1/retriever/README.md",
        "step3/hits.test.tsv",
        "best/index/passages.jsonl",
    ],
)
def test_what_is_not_there_is_made_again(whole, copied, gone):
    path = folder_of(copied) / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    rocketqa.train(copied)
    assert models(copied) == models(whole)
    assert outcome(copied).keys() == outcome(whole).keys()
    check_best(copied)


def test_other_passages_with_steps_taken_as_they_are(whole, copied, data, tmp_path):
    """What was searched and scored is so no more; nothing that is trusted is trained."""
    shutil.copytree(data, tmp_path / "data")
    texts = (tmp_path / "data/para.txt").read_text().replace("river", "ocean")
    (tmp_path / "data/para.txt").write_text(texts)
    changed = change(copied, "data", folder=str(tmp_path / "data"))
    before = models(whole)
    rocketqa.train(changed, Selection(from_stage="step3"))
    after = models(changed)
    assert [step for step in before if before[step] == after[step]] == ["step1", "step2"]
    assert "ocean" in (folder_of(changed) / "best/index/passages.jsonl").read_text()
    assert "river" not in (folder_of(changed) / "best/index/passages.jsonl").read_text()


def test_a_stage_done_again_leaves_best(copied):
    """A model that is no more must not be what people search with."""
    worse = change(copied, "step3", steps=1, optimizer=OptimizerSettings(learning_rate=0.5))
    best = json.loads((folder_of(copied) / "best/stages.json").read_text())["retriever"]
    rocketqa.train(change(worse, "step1", steps=5) if best == "step1" else worse)
    check_best(worse)


def test_the_threshold_of_pseudo_labels_leaves_step3_alone(copied, capsys):
    rocketqa.train(change(copied, "denoising", positive_above=0.6))
    said = capsys.readouterr().out
    assert "step3: finished before" in said
    assert "step4: done again: denoising.positive_above was 0.51, is 0.6" in said


def test_two_runs_in_one_folder(copied):
    with locked(folder_of(copied) / ".lock"), pytest.raises(ValueError, match="another run is at work"):
        rocketqa.train(copied)


@pytest.mark.parametrize("place", [".", "step3"])
def test_the_folder_of_something_else(data, tmp_path, place):
    """Told before any work, and nothing is touched."""
    settings = make(tmp_path / "run", data)
    if place != ".":
        rocketqa.train(settings, Selection(until_stage="step1"))
    note = tmp_path / "run" / place / "thesis.txt"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("years of work")
    with pytest.raises(ValueError, match="choose another --output"):
        rocketqa.train(settings)
    assert note.read_text() == "years of work"


def test_a_split_with_the_name_of_a_query_set(data, tmp_path):
    settings = change(make(tmp_path / "run", data), "data", tests=["train.labelled"])
    for name in ("{}.query.txt", "qrels.{}.tsv"):
        shutil.copy(data / name.format("test"), data / name.format("train.labelled"))
    with pytest.raises(ValueError, match="must not be called 'train.labelled'"):
        rocketqa.train(settings)


# Refused ------------------------------------------------------------------------------------------


def test_every_query_is_labelled(data, tmp_path):
    settings = change(make(tmp_path / "run", data), "data", max_train_queries=None)
    with pytest.raises(
        ValueError, match="of the 40 queries of 'train' none is left .40 are labelled training queries"
    ):
        rocketqa.train(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("below", "above"), [(0.9, 0.1), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0)])
def test_thresholds_that_cross(below, above):
    with pytest.raises(ValueError, match="expected 0 < negative_below < positive_above < 1"):
        DenoisingSettings(negative_below=below, positive_above=above)


@pytest.mark.parametrize(
    ("loss", "score", "scored"),
    [
        ("binary", 0.0, 20),  # neither rejected nor accepted
        ("binary", 9.0, 20),  # all accepted: no negatives
        ("binary", 9.0, 10),  # the same, but deeper ranks have negatives
        ("list", 0.1, 20),  # no slope fits them
    ],
)
def test_a_reranker_that_scores_everything_alike(copied, monkeypatch, loss, score, scored):
    """It cannot tell a negative from a positive: told with its probabilities, before any training on that."""
    settings = change(change(copied, "step2", loss=loss), "denoising", scored=scored, negative_below=0.5)
    rocketqa.train(settings, Selection(until_stage="step2"))
    stuck_at(score, monkeypatch)
    trained, fit = [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: (trained.append(self.stage), fit(self)))
    with pytest.raises(
        ValueError, match=r"no candidate has a probability below|all \d+ labelled positives have|scores other"
    ):
        rocketqa.train(settings)
    assert trained == []


def stuck_at(score, monkeypatch) -> None:
    monkeypatch.setattr(
        retrieval, "score_pairs", lambda _, queries, *__, **___: np.full(len(queries), score, np.float32)
    )


def test_a_reranker_that_rejects_everything(copied, monkeypatch):
    """Its negatives would be hard negatives as they are, under another name."""
    settings = change(copied, "step2", loss="binary")
    rocketqa.train(settings, Selection(until_stage="step2"))
    stuck_at(-9.0, monkeypatch)
    with pytest.raises(
        ValueError, match=r"all 25 labelled positives have a probability below .* 0\.000 to 0\.000"
    ):
        rocketqa.train(settings)
    assert not (folder_of(settings) / "step3" / "retriever").exists()


# Two processes ------------------------------------------------------------------------------------


def test_two_processes_end_as_one_with_twice_the_batch(data, tmp_path):
    """Every step's model, without dropout: in-batch and cross-batch negatives, mining, searches, scores."""
    one = change(make(tmp_path / "one", data), "retriever", dropout=0.0)
    one = change(one, "step2", steps=6, optimizer=FAST)  # in more, Adam makes much of the last digits
    one = change(one, "denoising", negative_below=0.5)
    two = dataclasses.replace(one, output=str(tmp_path / "two"))
    for step in ("step1", "step2", "step3", "step4"):
        two = change(two, step, batch_size=getattr(one, step).batch_size // 2)
    rocketqa.train(one)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(dataclasses.asdict(two)), encoding="utf-8")
    done = toy.run(
        *(toy.FLEETRUN, "--nproc_per_node", "2", "--log_dir", tmp_path / "log"),
        *(toy.ROOT / "examples" / "train_rocketqa.sh", "--config", "two.yaml"),
        cwd=tmp_path,
        PYTHON=sys.executable,
    )
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(log[-3000:] for log in logs)
    for step in ("step1", "step2", "step3", "step4"):
        name = "reranker" if step == "step2" else "retriever"
        ours, theirs = (
            parameters.to_arrays(checkpoints.load(folder_of(s) / step / name).network) for s in (one, two)
        )
        for key in ours.keys() - {name for name in ours if name.endswith("key.bias")}:  # they move no softmax
            np.testing.assert_allclose(theirs[key], ours[key], atol=1e-3, err_msg=f"{step} {key}")
    reports = [(folder_of(settings) / "stages.md").read_text() for settings in (one, two)]
    assert reports[0] == reports[1]
