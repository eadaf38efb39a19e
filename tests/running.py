"""Short runs of every system on the toy collection: their settings, stops at any moment, what they leave."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import toy
import yaml
from scipy import stats

from rocketqa_paddle import checkpoints
from rocketqa_paddle.commands import train as command
from rocketqa_paddle.data.candidates import Candidates
from rocketqa_paddle.data.runs import read_run
from rocketqa_paddle.data.store import FILES, Ids, PassageTexts
from rocketqa_paddle.evaluation import metrics, plots
from rocketqa_paddle.networks import forward, parameters
from rocketqa_paddle.records import Run as Hits
from rocketqa_paddle.runs.plan import Plan
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.runs.selection import Selection
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.settings import (
    ContrastiveSettings,
    DataSettings,
    EvaluationSettings,
    OptimizerSettings,
    RerankerSettings,
    RerankerWarmUpSettings,
    RetrieverSettings,
    RunSettings,
    TrainingSettings,
    WarmUpSettings,
)
from rocketqa_paddle.systems import SYSTEMS, System
from rocketqa_paddle.systems.ar2.settings import AdversarialSettings, AR2Settings, CandidateSettings
from rocketqa_paddle.systems.pair.settings import PairSettings, PretrainingSettings
from rocketqa_paddle.systems.rocketqa.settings import (
    AugmentedSettings,
    DenoisedSettings,
    DenoisingSettings,
    FirstRerankerSettings,
    FirstRetrieverSettings,
    RocketQASettings,
)
from rocketqa_paddle.systems.rocketqav2.settings import GroupSettings, JointSettings, RocketQAv2Settings
from rocketqa_paddle.training.trainer import Stopped, Trainer

MEASURES = ["RR@10", "Success@5"]
FAST = OptimizerSettings(learning_rate=1e-3)
RATES = {
    "reranker": OptimizerSettings(learning_rate=1e-3, warmup_ratio=0.3),
    "retriever": OptimizerSettings(learning_rate=2e-3, warmup_ratio=0.2),
}
STEPS = {"reranker": 2, "retriever": 3}
"""AR2's learning rates, and its steps a round."""

# Settings ----------------------------------------------------------------------------------------


def rocketqa(output: Path, folder: Path, /, **changes: Any) -> RocketQASettings:
    """Return settings of a run of a second. `changes` replace whole sections."""
    steps = {
        "step1": _first_retriever(),
        "step2": _first_reranker(steps=20),
        "step3": DenoisedSettings(batch_size=8, steps=4, optimizer=FAST),
        "step4": AugmentedSettings(batch_size=8, steps=4, optimizer=FAST),
    }
    return RocketQASettings(output=str(output), **(_denoising(folder) | steps | changes))


def pair(output: Path, folder: Path, /, **changes: Any) -> PairSettings:
    """Return settings as `rocketqa` does. The thresholds are low, for its re-ranker has learned little."""
    lamb = OptimizerSettings(learning_rate=1e-2, algorithm="lamb")
    sections = {
        "teacher_retriever": _first_retriever(),
        "teacher_reranker": _first_reranker(steps=12),
        "denoising": DenoisingSettings(
            depth=20, scored=10, negatives=2, negative_below=0.3, positive_above=0.31
        ),
        "pretraining": PretrainingSettings(batch_size=8, steps=4, optimizer=lamb, alpha=0.3),
        "finetuning": ContrastiveSettings(batch_size=8, steps=4, optimizer=FAST),
    }
    return PairSettings(output=str(output), **(_denoising(folder) | sections | changes))


def rocketqav2(output: Path, folder: Path, /, **changes: Any) -> RocketQAv2Settings:
    """Return settings as `rocketqa` does, with two rounds."""
    groups = GroupSettings(negatives=3, depth=20, negative_below=0.5)
    joint = JointSettings(rounds=2, batch_size=4, steps=4, queries=20, optimizer=FAST, groups=groups)
    return RocketQAv2Settings(output=str(output), **(_warmed_up(folder) | {"joint": joint} | changes))


def ar2(output: Path, folder: Path, /, **changes: Any) -> AR2Settings:
    """Return settings as `rocketqa` does, with two rounds."""
    trainings = {
        name: TrainingSettings(batch_size=4, steps=STEPS[name], optimizer=rate)
        for name, rate in RATES.items()
    }
    groups = CandidateSettings(negatives=3, depth=20)
    adversarial = AdversarialSettings(rounds=2, queries=20, groups=groups, **trainings)
    return AR2Settings(output=str(output), **(_warmed_up(folder) | {"adversarial": adversarial} | changes))


def _warmed_up(folder: Path) -> dict[str, Any]:
    return {
        "data": DataSettings(folder=str(folder), tests=["test"]),
        "warmup_retriever": WarmUpSettings(batch_size=8, steps=4, optimizer=FAST),
        "warmup_reranker": RerankerWarmUpSettings(batch_size=4, steps=4, negatives=3, optimizer=FAST),
        "evaluation": EvaluationSettings(depth=20, rerank_depth=10, measures=MEASURES),
        **_networks(folder, dropout=0.1),
    }


def _denoising(folder: Path) -> dict[str, Any]:
    """Sections of both systems whose teacher is a re-ranker. There are 25 labelled queries, 15 unlabelled."""
    return {
        "data": DataSettings(folder=str(folder), tests=["test"], unlabelled="train", max_train_queries=25),
        "evaluation": EvaluationSettings(depth=20, rerank_depth=10, measures=MEASURES, init=False),
        "denoising": DenoisingSettings(
            depth=20, scored=10, negatives=2, negative_below=0.3, positive_above=0.51
        ),
        **_networks(folder, dropout=0.0),
    }


def _networks(folder: Path, dropout: float) -> dict[str, Any]:
    """Initial checkpoints beside the data, which compute faster than the smallest size from scratch."""
    initial = folder.parent / f"{folder.name}-initial"
    if not initial.is_dir():
        tokens = toy.tokenizer(folder.parent / f"{folder.name}-vocabulary")
        paddle.seed(1)
        checkpoints.save(toy.dual(tokens, pooling="mean", shared=True), initial / "retriever")
        checkpoints.save(toy.cross(tokens), initial / "reranker")
    retriever = {"pooling": "mean", "shared": True, "query_length": 12, "passage_length": 20}
    return {
        "retriever": RetrieverSettings(init=str(initial / "retriever"), **retriever),
        "reranker": RerankerSettings(init=str(initial / "reranker"), length=28, dropout=dropout),
    }


def from_scratch(folder: Path) -> dict[str, Any]:
    """Networks of random weights, whose vocabulary is trained on the corpus."""
    made = _networks(folder, dropout=0.1)
    return {name: dataclasses.replace(section, init="tiny") for name, section in made.items()}


def _first_retriever() -> FirstRetrieverSettings:
    return FirstRetrieverSettings(batch_size=8, steps=4, optimizer=FAST)


def _first_reranker(steps: int) -> FirstRerankerSettings:
    """Return a training that is fast enough to tell a few positives from candidates."""
    rate = OptimizerSettings(learning_rate=3e-3)
    return FirstRerankerSettings(batch_size=4, steps=steps, negatives=3, loss="list", optimizer=rate)


def change(settings: RunSettings, path: str, **values: Any) -> Any:
    """Replace values of a section, named by its dotted path; of the settings themselves if that is empty."""
    if not path:
        return dataclasses.replace(settings, **values)
    first, _, rest = path.partition(".")
    return dataclasses.replace(settings, **{first: change(getattr(settings, first), rest, **values)})


# Running -----------------------------------------------------------------------------------------


def system_of(settings: RunSettings) -> System:
    return next(system for system in SYSTEMS.values() if system.settings is type(settings))


def train(settings: RunSettings, *selection: str | None, **flags: Any) -> None:
    """Train as the command does, without pictures; `selection` and `flags` are those of `Selection`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_curves", lambda lines, path: path.write_bytes(b"a picture"))
        command.train(system_of(settings), settings, Selection(*selection, **flags))


def rehearse(settings: RunSettings) -> tuple[Run, Plan]:
    """Walk through a system without computing anything."""
    run = Run(settings)
    return run, run.rehearse(system_of(settings).having(settings))


def statuses(settings: RunSettings) -> dict[str, str]:
    return {name: step.status for name, step in rehearse(settings)[1].steps.items()}


def reasons(settings: RunSettings) -> dict[str, list[str]]:
    """Return why steps would be done again, by step."""
    return {name: list(step.reasons) for name, step in rehearse(settings)[1].steps.items() if step.reasons}


def copied(settings: RunSettings, folder: Path) -> Any:
    """Copy a run into a folder that a test may change."""
    shutil.copytree(settings.output, folder)
    return dataclasses.replace(settings, output=str(folder))


def begun(settings: RunSettings, folder: Path) -> Any:
    """Begin another run that has only the vocabulary of this one, so that it need not be trained again."""
    folder.mkdir()
    shutil.copy(Path(settings.output) / "config.yaml", folder)
    if (vocabulary := Path(settings.output) / "vocabulary").is_dir():
        shutil.copytree(vocabulary, folder / "vocabulary")
    return dataclasses.replace(settings, output=str(folder))


@contextmanager
def spied() -> Iterator[dict[str, Trainer]]:
    """Collect a run's trainers by their names, with the learning rates and the weights they began with."""
    made: dict[str, Trainer] = {}
    init, take_step = Trainer.__init__, Trainer._take_step

    def remember(self: Trainer, name: str, networks: Any, *rest: Any, **keywords: Any) -> None:
        init(self, name, networks, *rest, **keywords)
        made[self.stage], self.rates = self, []
        self.began_with = {key: parameters.to_arrays(network) for key, network in networks.items()}

    def step(self: Trainer) -> dict[str, float]:
        values = take_step(self)
        self.rates.append(values["learning_rate"])
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", remember)
        patch.setattr(Trainer, "_take_step", step)
        yield made


TRAINING = [(Trainer, "fit")]
NETWORKS = [*TRAINING, (forward, "_infer_parts")]
"""Places through which every training, and every use of a network, goes."""


def forbid(patch: pytest.MonkeyPatch, places: list[tuple[Any, str]]) -> None:
    """Let a test fail that comes through one of these places."""
    for owner, name in places:
        patch.setattr(owner, name, lambda *_, _name=name, **__: pytest.fail(f"{_name} was called"))


# Stops -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as the death of its process would: nothing in the program takes it for an error."""


Stop = Callable[[pytest.MonkeyPatch], type[BaseException]]


def stop_at(owner: Any, name: str, number: int) -> Stop:
    """Send SIGTERM in a call of a loss: the trainer finishes the step, saves and stops."""
    return _at(owner, name, number, lambda: os.kill(os.getpid(), signal.SIGTERM), None, Stopped)


def kill_before(owner: Any, name: str, number: int) -> Stop:
    """Kill the run before a call of a function."""
    return _at(owner, name, number, _die, None, Killed)


def kill_after(owner: Any, name: str, number: int) -> Stop:
    """Kill the run just after a call of a function."""
    return _at(owner, name, number, None, _die, Killed)


def _die() -> None:
    raise Killed


def _at(owner: Any, name: str, number: int, before: Any, after: Any, raises: type[BaseException]) -> Stop:
    def prepare(patch: pytest.MonkeyPatch) -> type[BaseException]:
        original, calls = getattr(owner, name), []

        def counted(*arguments: Any, **keywords: Any) -> Any:
            calls.append(1)
            its_turn = len(calls) == number
            if its_turn and before:
                before()
            result = original(*arguments, **keywords)
            if its_turn and after:
                after()
            return result

        patch.setattr(owner, name, counted)
        return raises

    return prepare


def check_stop(whole: RunSettings, folder: Path, stop: Stop) -> None:
    """Stop a run, go on as another process would, and demand the outcome and the log of the whole run."""
    settings = begun(whole, folder)
    paddle.seed(12345)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(stop(patch)):
        train(settings)
    assert not (folder / "report.md").exists()
    paddle.seed(54321)
    train(settings)
    check_best(settings)
    assert outcome(settings) == outcome(whole)
    assert logged(settings) == logged(whole)
    assert not (folder / "last").exists()


def check_again(settings: RunSettings) -> None:
    """Demand that a finished run, begun again, computes nothing and changes nothing."""
    before, lines = outcome(settings), log(settings)
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, NETWORKS)
        train(settings)
    assert outcome(settings) == before
    assert log(settings) == lines


def check_change(
    settings: RunSettings, path: str, values: dict[str, Any], steps: dict[str, str], reason: str | None
) -> None:
    """Demand what a changed setting makes of a finished run's steps, and what is told of it."""
    changed = change(settings, path, **values)
    assert statuses(changed) == steps
    told = [line for lines in reasons(changed).values() for line in lines]
    assert any(line.endswith(reason) for line in told) if reason else not told


# Results -----------------------------------------------------------------------------------------


def read(settings: RunSettings, name: str) -> Hits:
    path = Path(settings.output) / name
    if path.suffix == ".tsv" and path.is_file():
        return read_run(path)
    return dict(Candidates.load(path.with_suffix(".npy"), Ids(Path(settings.output) / "corpus")))


def text(settings: RunSettings, name: str) -> str:
    return (Path(settings.output) / name).read_text(encoding="utf-8")


def log(settings: RunSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text(settings, "metrics.jsonl").splitlines()]


def logged(settings: RunSettings) -> list[tuple]:
    """Return what the log has in order, without times and losses."""
    return [(row["stage"], row.get("step"), *sorted(k for k in row if "dev/" in k)) for row in log(settings)]


def digests(settings: RunSettings, kind: str = "*") -> dict[str, str]:
    """Return the digest of every step's models, by place."""
    folder = Path(settings.output)
    places = [path.parent for path in folder.glob(f"*/{kind}/model.safetensors")]
    return {str(p.relative_to(folder)): checkpoints.load(p).digest() for p in places if p.parts[-2] != "best"}


def retrained(before: RunSettings, after: RunSettings) -> set[str]:
    """Return the steps whose models differ."""
    old, new = digests(before), digests(after)
    return {place.split("/")[0] for place in old.keys() | new.keys() if old.get(place) != new.get(place)}


def outcome(settings: RunSettings) -> dict[str, Any]:
    """Return what must not depend on how often a run was stopped: all files, and the content of most."""
    folder = Path(settings.output)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    patterns = ("*/*.npy", "*/*.tsv", "*.md", "best/*/*.jsonl")
    files = [path for pattern in patterns for path in folder.glob(pattern)]
    texts = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    records = {
        str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("*/*.json")
    }
    best = {kind: checkpoints.load(folder / "best" / kind).digest() for kind in best_record(settings)}
    index = json.loads((folder / "best/index/meta.json").read_text())["model"]
    return texts | records | digests(settings) | best | {"index": index, "names": names}


def best_record(settings: RunSettings) -> dict[str, dict[str, str]]:
    """Return what `best/` says of its models: a retriever, and a re-ranker if that helps."""
    return json.loads(text(settings, "best/steps.json"))


def best_step(settings: RunSettings, kind: str) -> str:
    """Return the step whose model is the best of its kind on dev, and in `best/` if that is a retriever."""
    if kind == "retriever":
        return best_record(settings)[kind]["step"]
    values = _dev_values(settings, kind, "reranked.*.dev.tsv")
    return max(values, key=values.get)


def check_weights(arrays: dict[str, np.ndarray], checkpoint: Path) -> None:
    """Demand that these are the weights of a checkpoint, bit by bit."""
    expected = parameters.to_arrays(checkpoints.load(checkpoint).network)
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[key], value) for key, value in expected.items())


def table(markdown: str) -> dict[str, list[float]]:
    """Return the two measures of every row of a report."""
    rows = re.findall(r"^\| (.+?) +\| \**([\d.]+)\** +\| \**([\d.]+)\** +\|$", markdown, flags=re.MULTILINE)
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: [float(value) for value in values] for name, *values in rows}


def measured(settings: RunSettings, files: dict[str, str], split: str) -> dict[str, Any]:
    """Measure runs anew; return what a table must have, by row."""
    qrels = toy.collection().splits[split].qrels
    values = {row: metrics.evaluate(qrels, read(settings, file), MEASURES) for row, file in files.items()}
    return {row: pytest.approx(list(value.values()), abs=6e-4) for row, value in values.items()}


def check_files(settings: RunSettings, trained: dict[str, list[str]], runs: set[str], ignored: str) -> None:
    """Demand the files of a finished run and no others.

    Args:
        settings: of the run.
        trained: the models of every step.
        runs: hits and scores, without their ending.
        ignored: a pattern of runs that depend on which models are best.
    """
    folder = Path(settings.output)
    expected = {"best/steps.json", "best/engine.json", "config.yaml", "metrics.jsonl"}
    expected |= {"report.md", "steps.md", "curves.png"}
    expected |= {f"{step}/step.json" for step in trained} | {
        f"{run}{ending}" for run in runs for ending in (".npy", ".queries.txt")
    }
    expected |= {f"{run}.tsv" for run in runs if run.endswith((".dev", ".test"))}
    expected |= {f"corpus/{file}" for file in ("corpus.json", *FILES)}
    expected |= {
        f"{step}/{kind}/{part}"
        for step, kinds in {**trained, "best": list(best_record(settings))}.items()
        for kind in kinds
        for part in ("config.json", "model.safetensors", "vocab.txt", "README.md")
    }
    expected |= {f"best/index/{part}" for part in ("vectors.npy", "meta.json", *FILES)}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert expected - found == set()
    assert {name for name in found - expected if not re.fullmatch(rf"vocabulary/.*|{ignored}", name)} == set()
    assert yaml.safe_load(text(settings, "config.yaml")) == dataclasses.asdict(settings)


def check_best(settings: RunSettings) -> None:
    """Demand that `best/` is a search engine whose parts fit one another, and the best on dev.

    It has a re-ranker if and only if the best one orders what its retriever finds significantly better.
    """
    best, record = Path(settings.output) / "best", best_record(settings)
    retriever = checkpoints.load(best / "retriever", kind="dual_encoder")
    index = VectorIndex.load(best / "index", retriever.digest())
    texts = list(PassageTexts(best / "index", index.ids))
    vectors = forward.encode_passages(retriever, *zip(*((p.title, p.text) for p in texts), strict=True))
    np.testing.assert_allclose(index.vectors(0, len(texts)), vectors, atol=1e-4)
    values, found = _dev_values(settings, "retriever", "hits.dev.tsv"), record["retriever"]["step"]
    assert values[found] == max(values.values()), (found, values)

    judge = best_step(settings, "reranker")
    places = f"{found}/hits.dev.tsv", f"{judge}/reranked.{found.replace('/', '.')}.dev.tsv"
    alone, over = (_each_value(settings, place) for place in places)
    helps = over.mean() > alone.mean() and stats.ttest_rel(over, alone).pvalue < 0.05
    assert list(record) == ["retriever", "reranker"] if helps else ["retriever"], (over, values)
    assert (best / "reranker").exists() == helps
    depth = settings.evaluation.rerank_depth if helps else 0
    assert json.loads((best / "engine.json").read_text()) == {"depth": depth}
    for kind, step in {"retriever": found, "reranker": judge}.items():
        if kind in record:
            assert step == record[kind]["step"]
            assert (
                step == "initial"
                or checkpoints.load(best / kind).digest() == digests(settings, kind)[f"{step}/{kind}"]
            )
            assert f"step {step}, by RR@10 on dev" in (best / kind / "README.md").read_text()


def _dev_values(settings: RunSettings, kind: str, runs: str) -> dict[str, float]:
    values = {}
    for name, step in rehearse(settings)[1].steps.items():
        if any(model.kind.value == kind for model in step.models) or (kind, name) == ("retriever", "initial"):
            made = [made.place.replace(".npy", ".tsv") for made in (*step.kept, *step.missing)]
            [place] = [place for place in made if Path(place).match(f"{name}/{runs}")]
            values[name] = _each_value(settings, place).mean()
    return values


def _each_value(settings: RunSettings, place: str) -> np.ndarray:
    qrels = rehearse(settings)[0].dev.qrels
    return metrics.evaluate_queries(qrels, read_run(Path(settings.output) / place), ["RR@10"])["RR@10"]


def check_same_weights(one: RunSettings, two: RunSettings) -> None:
    """Demand that the models of two runs are alike, but for biases to which a softmax is blind.

    It is blind to what adds the same to all scores: a key's bias; in a re-ranker that gives one logit, the
    head's bias and that of the last layer norm. Adam makes steps of the rounding errors in their gradients.
    """
    for place in digests(one):
        first, second = (
            parameters.to_arrays(checkpoints.load(Path(s.output) / place).network) for s in (one, two)
        )
        last = ("output.bias", "layers.1.ffn_norm.bias") if place.endswith("reranker") else ()
        for key in first:
            if not key.endswith(("key.bias", *last)):
                np.testing.assert_allclose(second[key], first[key], atol=1e-3, err_msg=f"{place} {key}")
