"""Every system on four processes: it ends as on one with four times the batch, and rank 0 alone writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import running
import toy
import yaml
from running import FAST, STEPS, change, train

from rocketqa_paddle import checkpoints
from rocketqa_paddle.commands.compare import CompareSettings
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.settings import TrainingSettings

ROUNDS = {
    "AR2": {"system": "ar2", "adversarial": {"rounds": 1, "groups": {"negatives": 3, "depth": 20}}},
    "RocketQAv2": {
        "system": "rocketqav2",
        "joint": {"rounds": 1, "groups": {"negatives": 3, "depth": 20, "sources": ["random"]}},
    },
}


def without_dropout(settings):
    return change(change(settings, "retriever", dropout=0.0), "reranker", dropout=0.0)


def singles(folder, data) -> dict:
    """Settings for one process, by the name of a command. AR2 takes a batch in two chunks."""
    rocketqa = without_dropout(running.rocketqa(folder / "rocketqa", data))
    rocketqa = change(
        rocketqa, "step2", steps=6, optimizer=FAST
    )  # in more, Adam makes much of the last digits
    ar2 = without_dropout(running.ar2(folder / "ar2", data))
    for kind in STEPS:
        ar2 = change(ar2, f"adversarial.{kind}", chunks=2)
    return {
        "train-rocketqa": change(rocketqa, "denoising", negative_below=0.5),
        "train-rocketqav2": without_dropout(running.rocketqav2(folder / "rocketqav2", data)),
        "train-ar2": ar2,
        "train-pair": without_dropout(running.pair(folder / "pair", data)),
    }


def quartered(settings):
    """The same settings with a quarter of every batch, in one piece."""
    values = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = quartered(value)
    if isinstance(settings, TrainingSettings):
        values |= {"batch_size": settings.batch_size // 4, "chunks": 1}
    return dataclasses.replace(settings, **values)


@pytest.fixture(scope="module")
def both(data, tmp_path_factory):
    """Settings of every command, for one process and for four, which have run; and what the four printed."""
    folder = tmp_path_factory.mktemp("both")
    one = singles(folder / "one", data)
    four = {
        name: quartered(change(s, "", output=s.output.replace("/one/", "/four/"))) for name, s in one.items()
    }
    shared = running.rocketqav2(folder / "four" / "compare", data)
    four["compare"] = CompareSettings(
        output=shared.output, steps=4, systems=ROUNDS, **{name: getattr(shared, name) for name in SHARED}
    )
    for settings in one.values():
        train(settings)
    for name, settings in four.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings)), encoding="utf-8")
    done = toy.run(
        *(toy.FLEETRUN, "--nproc_per_node", "4", "--log_dir", folder / "log"),
        *(toy.ROOT / "tests" / "systems_worker.py", *(f"{name}.yaml" for name in four)),
        cwd=folder,
        timeout=300,
    )
    logs = [path.read_text() for path in sorted((folder / "log").glob("workerlog.*"))]
    assert done.returncode == 0, "\n".join(log[-3000:] for log in logs)
    return one, four, logs


SHARED = ("data", "retriever", "reranker", "evaluation", "warmup_retriever", "warmup_reranker")


@pytest.mark.parametrize("name", ["train-rocketqa", "train-rocketqav2", "train-ar2", "train-pair"])
def test_four_processes_end_as_one_with_four_times_the_batch(both, name):
    """Every step's models: in-batch and cross-batch negatives, mining, searches, scores, schedules."""
    one, four, _ = both
    running.check_same_weights(one[name], four[name])
    running.check_best(four[name])
    if name == "train-rocketqa":
        assert running.text(one[name], "steps.md") == running.text(four[name], "steps.md")


def test_rank_0_alone_writes_and_tells(both):
    _, four, logs = both
    assert len(logs) == 4
    for settings in four.values():
        assert running.text(settings, "report.md").strip() in logs[0]
    assert not any("| system" in log for log in logs[1:])
    assert all("Traceback" not in log for log in logs)


def test_one_process_finds_finished_what_four_have_done(both, monkeypatch, capsys):
    _, four, _ = both
    settings = four["train-pair"]
    folder = Path(settings.output)
    assert set(running.statuses(settings).values()) == {"finished"}
    assert len(running.read(settings, "teacher_retriever/hits.train.unlabelled.tsv")) == 15
    digest = checkpoints.load(folder / "best" / "retriever").digest()
    assert len(VectorIndex.load(folder / "best" / "index", digest)) == 60
    running.check_best(settings)
    running.forbid(monkeypatch, running.NETWORKS)
    train(settings, until_stage="pretraining")
    said = capsys.readouterr().out
    assert "pretraining: it was done by 4 processes, now by 1" in said


def test_a_comparison_on_four_processes(both):
    _, four, _ = both
    folder = Path(four["compare"].output)
    for row in ("ar2", "rocketqav2"):
        assert (folder / row / "round-001" / "retriever").is_dir()
