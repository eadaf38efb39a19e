"""The whole of PAIR on the toy collection: which data and which loss each of its stages trains with."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections import Counter

import paddle
import pytest
import toy
import yaml
from test_rocketqa import FAST, RERANKER, RETRIEVER, change, forbid, logged, measured, sections, table
from test_rocketqav2 import begin, check_best, folder_of, outcome, stop_at

from rocketqa_paddle import checkpoints, contrastive, losses
from rocketqa_paddle.data import formats
from rocketqa_paddle.runs import pipeline
from rocketqa_paddle.runs.stages import Selection
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.search.retrieval import CorpusIndex
from rocketqa_paddle.settings import (
    ContrastiveSettings,
    DenoisingSettings,
    OptimizerSettings,
    PairSettings,
    PretrainingSettings,
    RetrieverSettings,
)
from rocketqa_paddle.systems.pair import run as pair
from rocketqa_paddle.training.trainer import Trainer

STAGES = ["teacher_retriever", "teacher_reranker", "pretraining", "finetuning"]
LAMB = OptimizerSettings(learning_rate=1e-2, algorithm="lamb")


def make(output, data, **changes) -> PairSettings:
    """Of a run that goes through every stage in a second or two. `changes` replace whole sections."""
    stages = {
        "teacher_retriever": RETRIEVER,
        "teacher_reranker": dataclasses.replace(RERANKER, steps=12),
        # So low that the re-ranker accepts passages for queries of which it has seen no word.
        "denoising": DenoisingSettings(
            depth=20, scored=10, negatives=2, negative_below=0.3, positive_above=0.31
        ),
        "pretraining": PretrainingSettings(batch_size=8, steps=4, optimizer=LAMB, alpha=0.3),
        "finetuning": ContrastiveSettings(batch_size=8, steps=4, optimizer=FAST),
    }
    return PairSettings(output=str(output), **(sections(data) | stages | changes))


@pytest.fixture(scope="module")
def seen():
    """Filled by `whole`: by stage, the loss's weight, the start weights and the groups."""
    return {"alpha": []}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, seen):
    """The settings of a run that nothing interrupted."""
    settings = make(tmp_path_factory.mktemp("whole") / "run", data)
    in_batch, trained = contrastive.in_batch, pipeline.Pipeline.trained

    def spy_loss(retriever, alpha=0.0, **keywords):
        seen["alpha"].append(alpha)
        return in_batch(retriever, alpha, **keywords)

    def spy(self, stage, networks, groups, *rest, **keywords):
        start, built = next(iter(networks.values())).digest(), groups()
        seen[stage] = (start, built)
        return trained(self, stage, networks, lambda: built, *rest, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "in_batch", spy_loss)
        patch.setattr(pipeline.Pipeline, "trained", spy)
        pair.train(settings)
    return settings


def digest(settings, stage, model="retriever") -> str:
    return checkpoints.load(folder_of(settings) / stage / model).digest()


def test_the_run_folder_is_whole(whole):
    folder = folder_of(whole)
    trained = {stage: ["reranker" if stage == "teacher_reranker" else "retriever"] for stage in STAGES}
    searched = [stage for stage in STAGES if stage != "teacher_reranker"]
    sets = ("labelled", "unlabelled")
    others = {f"{stage}/hits.{split}.tsv" for stage in searched for split in ("dev", "test")}
    others |= {f"teacher_retriever/hits.train.{name}.tsv" for name in sets}
    others |= {f"teacher_reranker/scored.teacher_retriever.train.{name}.tsv" for name in sets}
    others |= {"teacher_reranker/reranked.dev.tsv"}
    toy.check_files(folder, trained, others, ignored=r"best/teacher_reranker\.over\.")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dataclasses.asdict(whole)
    check_best(whole)


def test_the_tables_hold_what_the_runs_give(whole):
    titles = {"teacher_retriever": "teacher", "pretraining": "stage 1 (pre-training)"}
    titles["finetuning"] = "stage 2 (fine-tuning)"
    text = (folder_of(whole) / "report.md").read_text()
    for split, shown in {"dev": (folder_of(whole) / "stages.md").read_text(), "test": text}.items():
        files = {f"retriever, {title}": f"{stage}/hits.{split}.tsv" for stage, title in titles.items()}
        expected = measured(whole, files, split)
        assert {name: values for name, values in table(shown).items() if name in expected} == expected
    assert "re-ranker over teacher" in table(text)


def test_both_similarities_in_pretraining_alone(whole, seen):
    """The teacher, pre-training, fine-tuning."""
    assert seen["alpha"] == [0, 0.3, 0]


def test_fine_tuning_goes_on_from_pretraining(whole, seen):
    start = pair.PairRun(whole).start_retriever().digest()
    assert seen["teacher_retriever"][0] == seen["pretraining"][0] == start
    assert seen["finetuning"][0] == digest(whole, "pretraining")
    assert len({digest(whole, stage) for stage in ("teacher_retriever", "pretraining", "finetuning")}) == 3


def test_each_stage_has_its_data(whole, seen):
    """Pre-training has pseudo labels even for labelled queries; fine-tuning has their own."""
    run = pair.PairRun(whole)
    labelled, unlabelled = run.train_split.queries.keys(), run.unlabelled.queries.keys()
    first, second = seen["pretraining"][1], seen["finetuning"][1]
    assert {group.source for group in first} == {"pseudo"}
    asked = {group.query.id for group in first}
    assert asked & labelled and asked & unlabelled and asked <= labelled | unlabelled
    sources = Counter((group.source, group.query.id in labelled) for group in second)
    assert sources.keys() == {("denoised", True), ("pseudo", False)}
    assert sources["denoised", True] == 25
    assert sources["pseudo", False] == len(asked & unlabelled)
    qrels = run.train_split.qrels
    for group in first + second:
        positive, *negatives = [passage.id for passage in group.passages]
        answers = {i for i, relevance in qrels.get(group.query.id, {}).items() if relevance > 0}
        assert not answers & set(negatives)
        if group.source == "denoised":
            assert positive in answers
    cards = [(folder_of(whole) / stage / "retriever" / "README.md").read_text() for stage in STAGES[2:]]
    assert f"{len(first)} groups ({len(first)} pseudo)" in cards[0]
    assert f"(25 denoised, {len(second) - 25} pseudo)" in cards[1]


def test_pretraining_without_unlabelled_queries(whole, data, tmp_path):
    settings = change(dataclasses.replace(whole, output=str(tmp_path)), "data", unlabelled=None)
    settings = change(settings, "pretraining", batch_size=4)
    pair.train(settings)
    card = (tmp_path / "finetuning" / "retriever" / "README.md").read_text()
    assert "on 25 groups (25 denoised)" in card
    check_best(settings)


def test_two_towers_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="retriever.shared=true"):
        make(tmp_path, data, retriever=RetrieverSettings(start="tiny", shared=False))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_weight_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        PretrainingSettings(alpha=alpha)


# Stopped and started again ------------------------------------------------------------------------


def test_starting_again_computes_nothing(whole, monkeypatch):
    before = outcome(whole)
    forbid(monkeypatch, (Trainer, "fit"), (CorpusIndex, "__init__"), (retrieval, "_infer"))
    pair.train(whole)
    assert outcome(whole) == before


@pytest.mark.parametrize("step", [1, 3])
def test_lamb_goes_on_as_if_never_stopped(whole, tmp_path, monkeypatch, step):
    """SIGTERM in pre-training, the stage that LAMB trains; parameters, moments and their powers come back."""
    settings = begin(whole, tmp_path / "run")
    with monkeypatch.context() as patch:
        stopped = stop_at(losses, "pair", step)(patch)
        with pytest.raises(stopped, match=f"step {step} of 4"):
            pair.train(settings)
    paddle.seed(54321)  # a new process
    pair.train(settings)
    assert outcome(settings) == outcome(whole)
    assert logged(settings) == logged(whole)
    check_best(settings)


def test_a_setting_of_finetuning_repeats_it_alone(whole, tmp_path, capsys):
    shutil.copytree(folder_of(whole), tmp_path / "run")
    settings = change(dataclasses.replace(whole, output=str(tmp_path / "run")), "finetuning", steps=5)
    pair.train(settings)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.endswith("finished before")] == [
        f"{stage}: finished before" for stage in STAGES[:3]
    ]
    assert "finetuning: done again: finetuning.steps was 4, is 5" in said
    assert digest(settings, "pretraining") == digest(whole, "pretraining")
    assert digest(settings, "finetuning") != digest(whole, "finetuning")
    check_best(settings)


# Two processes ------------------------------------------------------------------------------------


def test_on_two_processes(whole, data, tmp_path):
    """Both end well, rank 0 alone writes, and the stages are found finished by one process afterwards."""
    output = tmp_path / "mine"
    settings = change(dataclasses.replace(whole, output=str(output)), "pretraining", batch_size=4)
    settings = change(change(settings, "finetuning", batch_size=4), "teacher_retriever", batch_size=4)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings)), encoding="utf-8")
    script = toy.ROOT / "examples" / "train_pair.sh"
    done = toy.run(
        *(toy.FLEETRUN, "--nproc_per_node", "2", "--log_dir", tmp_path / "log"),
        *(script, "--config", "my.yaml"),
        cwd=tmp_path,
        PYTHON=sys.executable,
    )
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(log[-3000:] for log in logs)
    assert len(logs) == 2
    assert all("Traceback" not in log for log in logs)
    assert (output / "report.md").read_text().strip() in logs[0]
    assert "| system" not in logs[1]  # told once
    run = pair.PairRun(settings)
    digests: dict[str, str] = {}
    for stage in run.stages():
        state = run.ledger.state(stage, digests)
        assert state.status == "finished"
        digests[stage.name] = state.digest
    assert len(formats.read_run(output / "teacher_retriever/hits.train.unlabelled.tsv")) == 15
    index = VectorIndex.load(output / "best/index", checkpoints.load(output / "best/retriever").digest())
    assert len(index) == 60
    check_best(settings)
    pair.train(settings, Selection(until_stage="pretraining"))  # nothing is done again


# A teacher from elsewhere -------------------------------------------------------------------------


def test_a_finished_retriever_is_the_teacher(whole, tmp_path, monkeypatch, capsys):
    """Its index is used as it is; pre-training begins with the run's own start weights all the same."""
    shutil.copytree(folder_of(whole) / "best", tmp_path / "theirs")
    for part in ("retriever", "index"):
        shutil.rmtree(tmp_path / "theirs" / part)
    teacher = checkpoints.load(folder_of(whole) / "finetuning" / "retriever")
    checkpoints.save(teacher, tmp_path / "theirs" / "retriever")
    CorpusIndex(teacher, toy.collection().passages, progress="").save(
        tmp_path / "theirs" / "index", teacher.digest()
    )
    start = str(tmp_path / "theirs" / "retriever")
    settings = change(begin(whole, tmp_path / "run"), "teacher_retriever", start=start, queries=0)
    settings = change(change(settings, "data", unlabelled=None), "pretraining", batch_size=4)
    encoded, original = [], CorpusIndex.__init__

    def spy(self, checkpoint, *rest, **keywords):
        encoded.append(checkpoint.digest())
        original(self, checkpoint, *rest, **keywords)

    monkeypatch.setattr(CorpusIndex, "__init__", spy)
    pair.train(settings)
    run = pair.PairRun(settings)
    assert digest(settings, "teacher_retriever") == teacher.digest()
    assert teacher.digest() not in encoded
    assert f"as it is in {tmp_path / 'theirs' / 'index'}" in capsys.readouterr().out
    assert run.start_retriever().digest() == pair.PairRun(whole).start_retriever().digest()
    check_best(settings)

    (tmp_path / "theirs").rename(tmp_path / "moved")
    moved = change(settings, "teacher_retriever", start=str(tmp_path / "moved" / "retriever"))
    stage = {stage.name: stage for stage in pair.PairRun(moved).stages()}["teacher_retriever"]
    assert run.ledger.state(stage, {}).status == "finished"  # the same weights, wherever they lie
    checkpoints.save(
        checkpoints.load(folder_of(whole) / "pretraining" / "retriever"), moved.teacher_retriever.start
    )
    stage = {stage.name: stage for stage in pair.PairRun(moved).stages()}["teacher_retriever"]
    changes = run.ledger.state(stage, {}).changes
    assert list(changes.values()) == ["start weights of the stage changed"]


def test_a_finished_retriever_that_the_settings_would_change_is_refused(whole, tmp_path):
    start = str(folder_of(whole) / "finetuning" / "retriever")
    settings = change(begin(whole, tmp_path / "run"), "teacher_retriever", start=start, queries=0)
    settings = change(settings, "retriever", pooling="cls", passage_length=16)
    with pytest.raises(
        ValueError, match="teacher_retriever.start: .* has pooling mean, not cls; passage 20, not 16: change"
    ):
        pair.train(settings)
