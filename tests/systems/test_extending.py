"""A fifth system, defined here alone, is trained, resumed, told and compared as those that are registered.

It is the example of `docs/extending.md`, and uses every point at which systems may differ: a batch sampler
(as TAS-B), a policy for negatives (as SimANS), teacher scores that groups carry, and constants beside the
vectors of a contrastive loss (Margin-MSE).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import toy
import yaml

from rocketqa_paddle.commands import cli
from rocketqa_paddle.networks import forward
from rocketqa_paddle.systems import SYSTEMS

# begin ---------------------------------------------------------------------------------------------
from collections.abc import Iterable, Iterator, Sequence  # isort: skip
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import paddle
from paddle.nn.functional import mse_loss

from rocketqa_paddle.contrastive import Contrastive
from rocketqa_paddle.mining.miner import Miner
from rocketqa_paddle.networks.encoders import Checkpoint
from rocketqa_paddle.networks.forward import passage_vectors, query_vectors
from rocketqa_paddle.records import Group, Model, Query
from rocketqa_paddle.records import Run as Hits
from rocketqa_paddle.runs.report import report_rounds
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runs.trainings import Training
from rocketqa_paddle.settings import TrainingSettings, WarmedUpSettings
from rocketqa_paddle.systems import System
from rocketqa_paddle.systems.warm_up import warm_up
from rocketqa_paddle.training.order import Sampler, seed_of


@dataclass(frozen=True)
class ToySettings(WarmedUpSettings):
    """Everything that `rocketqa train toy` reads."""

    student: TrainingSettings = field(default_factory=TrainingSettings)
    """The retriever that learns from the warmed-up re-ranker."""
    candidates: int = 10
    """Candidates of a query that the teacher scores."""


def train(run: Run, s: ToySettings) -> None:
    """Warm up a retriever and a teacher; then train another retriever on the teacher's scores."""
    deal = run.deal()
    retriever, teacher = warm_up(run, s, run.initial_retriever(), deal, s.candidates)
    queries = deal.take("train.student", None)
    scores = run.score(teacher, run.search(retriever, queries, s.candidates))
    groups = run.mine(near_the_positive, queries, negatives=1, scored=scores)
    batches, models = partial(one_topic, topics=2), [run.initial_retriever()]
    training = Training("student", "student", models, groups, margin_mse, s.student, batches=batches)
    run.evaluate_retriever(run.train(training)[Model.RETRIEVER])
    report_rounds(run, "Toy", rounds=["student"])


def near_the_positive(miner: Miner, queries: Iterable[Query], scored: Hits) -> Iterator[Group]:
    """Take the candidates that the teacher scores nearest to the positive (SimANS)."""
    for query in queries:
        scores = {hit.passage_id: hit.score for hit in scored[query.id]}
        positive = miner.positive(query)
        others = miner.without_positives(query, scores)
        others.sort(key=lambda passage: abs(scores[passage] - scores[positive]))
        yield miner.group(query, positive, others[: miner.negatives], "random", scores)


def one_topic(groups: Sequence[Group], batch_size: int, seed: Sequence[object], topics: int) -> Sampler:
    """Queries of one topic make a batch (TAS-B); here the topic is the length of the query."""
    rows = np.argsort([len(group.query.text) for group in groups], kind="stable")
    topic = np.array_split(rows, topics)
    return lambda step: np.random.default_rng(seed_of(*seed, step)).permutation(topic[step % topics])[
        :batch_size
    ]


def margin_mse(student: Checkpoint) -> Contrastive[Group]:
    """The student's margin between positive and negative is to be the teacher's (Margin-MSE)."""

    def encode(groups: Sequence[Group]) -> list[paddle.Tensor]:
        columns = zip(*(group.passages for group in groups), strict=True)
        return [query_vectors(student, groups), *(passage_vectors(student, passages) for passages in columns)]

    def loss(queries, positives, negatives, margins) -> dict[str, paddle.Tensor]:
        return {"loss": mse_loss((queries * (positives - negatives)).sum(-1), margins)}

    return Contrastive(
        encode, loss, constants=lambda groups: [paddle.to_tensor([g.scores[0] - g.scores[1] for g in groups])]
    )


TOY = System("toy", "Toy", "A student that learns margins from a teacher.", ToySettings, train)
# end -----------------------------------------------------------------------------------------------

FLAGS = {"student.batch_size": 4, "student.steps": 4, "candidates": 8}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SYSTEMS, TOY.name, TOY)


def flags(output: Path, data: Path, **more: object) -> list[str]:
    own = {name: value for name, value in toy.FLAGS.items() if not name.startswith("joint.")}
    values = own | FLAGS | {"output": output, "data.folder": data} | more
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_it_trains_and_goes_on(data, tmp_path, capsys, monkeypatch):
    cli.main(["train", "toy", *flags(tmp_path / "whole", data)])
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "| retriever, student " in report and "retriever, student against retriever, warmed up" in report

    output = tmp_path / "stopped"
    encoded = forward.passage_vectors
    calls: list[int] = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encoded(*args)

    monkeypatch.setattr("rocketqa_paddle.contrastive.passage_vectors", encoded)
    monkeypatch.setitem(globals(), "passage_vectors", interrupted)
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "toy", *flags(output, data, save_minutes=0)])
    assert left.value.code == 130
    capsys.readouterr()
    monkeypatch.setitem(globals(), "passage_vectors", encoded)
    cli.main(["train", "toy", *flags(output, data, save_minutes=0)])
    assert "warm-up: finished before" in capsys.readouterr().out
    assert (output / "report.md").read_text() == report


def test_only_what_a_step_was_handed_decides_it(data, tmp_path, capsys):
    output = tmp_path / "run"
    cli.main(["train", "toy", *flags(output, data)])
    capsys.readouterr()
    cli.main(["train", "toy", *flags(output, data, **{"student.steps": 5}), "--dry-run"])
    told = capsys.readouterr().out
    assert re.search(r"warm-up +\| warmed up +\| finished", told) and re.search(
        r"student +\| student +\| changed", told
    )
    assert "student would be done again: steps was 4, is now 5" in told


def test_it_is_told_before_it_is_done(data, tmp_path, capsys):
    cli.main(["train", "toy", *flags(tmp_path / "run", data), "--dry-run"])
    told = capsys.readouterr().out
    scored = 40 * FLAGS["candidates"]  # the teacher scores every candidate once, not at every step
    assert re.search(rf"\| student +\| student +\| new +\| 4 +\| 48 +\| .* \| {scored} +\|", told)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "toy", "--help"])
    assert not left.value.code and "A student that learns margins" in capsys.readouterr().out


def test_it_is_compared(data, tmp_path, capsys):
    config = tmp_path / "compare.yaml"
    rows = {
        "Margins": {"system": "toy", "candidates": 8, "student": {"batch_size": 4}},
        "V2": {"system": "rocketqav2"},
    }
    rows["V2"]["joint"] = {"batch_size": 4, "queries": 12, "groups": {"negatives": 3, "depth": 8}}
    config.write_text(yaml.safe_dump({"steps": 4, "systems": rows}))
    own = {k: v for k, v in toy.FLAGS.items() if not k.startswith("joint.")}
    values = own | {"retriever.shared": "false", "output": tmp_path / "run", "data.folder": data}
    cli.main(
        ["compare", "--config", str(config), *(w for k, v in values.items() for w in (f"--{k}", str(v)))]
    )
    told = capsys.readouterr().out
    assert "# Margins" in told and "Margins, student (4 steps)" in told and "V2, round-001 (4 steps)" in told
    assert (tmp_path / "run" / "margins" / "student" / "retriever" / "config.json").is_file()


def test_the_documentation_shows_this_very_system():
    code = Path(__file__).read_text().split("# begin -")[1].split("# end -")[0].partition("\n")[2].strip()
    page = (toy.ROOT / "docs" / "extending.md").read_text()
    assert code.replace("  # isort: skip", "") in page
    lines = code.partition("@dataclass")[2].split("\n")
    assert len(lines) <= 60
