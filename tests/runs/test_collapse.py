"""A model that its training has spoiled ends the run; a sound one, a weak one and a lucky one do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import running
import toy
from running import change, train

from rocketqa_paddle.data.dataset import Corpus, QuerySet
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.records import Collection, Model, Passage, Query, Split
from rocketqa_paddle.runs.artefacts import InitialModel, StoredRun, TrainedModel
from rocketqa_paddle.runs.collapse import CollapseCheck
from rocketqa_paddle.search.retrieval import to_hits
from rocketqa_paddle.settings import OptimizerSettings, RerankerWarmUpSettings, WarmUpSettings

# The rules -----------------------------------------------------------------------------------------

DEPTH, PASSAGES = 10, 200


class Notes:
    """A ledger that remembers what is noted, by run."""

    def __init__(self) -> None:
        self.noted: dict[str, dict] = {}

    def record(self, run: StoredRun) -> dict:
        return self.noted.setdefault(str(run), {})

    def note(self, run: StoredRun, **facts) -> None:
        self.record(run).update(facts)


class Dev:
    """A walk with a dev set of so many queries, and runs in which query i has its passage at a rank."""

    def __init__(self, queries: int = 100, stop: bool = True) -> None:
        self.settings = SimpleNamespace(
            evaluation=SimpleNamespace(measures=["RR@10", "Success@5"]), stop_on_collapse=stop
        )
        self.corpus = Corpus({f"p{i}": Passage(f"p{i}", "", f"text {i}") for i in range(PASSAGES)})
        made = {f"q{i}": Query(f"q{i}", f"question {i}") for i in range(queries)}
        self.ledger = Notes()
        self.dev = QuerySet("dev", made, {f"q{i}": {f"p{i}": 1} for i in range(queries)})
        self.checked = CollapseCheck(self)

    def measure(self, run: StoredRun) -> dict[str, np.ndarray]:
        return metrics.evaluate_queries(self.dev.qrels, run.value(), ["RR@10"])

    def run(self, model, ranks, spread: float = 1.0, over: str | None = None) -> StoredRun:
        """`ranks` has the rank of the relevant passage by query, repeated; 0 if it was not found."""
        hits = {}
        for i, query in enumerate(self.dev.queries):
            ids = [f"p{(i + 1 + n) % PASSAGES}" for n in range(DEPTH)]
            if rank := ranks[i % len(ranks)]:
                ids[rank - 1] = f"p{i}"
            hits[query] = to_hits(query, [(id, 7 - spread * n / DEPTH) for n, id in enumerate(ids)])
        made_of = {"model": model} | ({"hits": over} if over else {})
        return StoredRun(f"{model.step}/hits.dev", made_of, lambda _: hits, self.dev, DEPTH, exported=False)

    def check(self, model, ranks, **run) -> None:
        self.checked.check(model, self.run(model, ranks, **run))


def initial(kind: Model = Model.RETRIEVER) -> InitialModel:
    return InitialModel(kind, {"checkpoint": "of a test"}, lambda: None)


def trained(step: str, before, kind: Model = Model.RETRIEVER) -> TrainedModel:
    return TrainedModel(kind, step, step, {kind.value: before, "seed": 1, "step": step}, lambda _: None)


def test_a_sound_training_is_quiet(capsys):
    walk, begun = Dev(), initial()
    walk.check(begun, [2, 3, 0])
    walk.check(one := trained("one", begun), [1, 2, 0])
    walk.check(trained("two", one), [1, 2, 3, 0])  # a little worse
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", Model)
def test_one_score_for_all_passages(kind):
    with pytest.raises(ValueError, match=f"^one: the {kind.title} has collapsed: it gives all .* same score"):
        Dev(queries=3).check(trained("one", initial(kind), kind), [1], spread=1e-5)
    Dev(queries=3).check(trained("one", initial(kind), kind), [1], spread=1e-3)


def test_the_ranks_beyond_those_that_a_re_ranker_scored_are_no_spread():
    walk, model = Dev(), trained("one", initial(Model.RERANKER), Model.RERANKER)
    run = walk.run(model, [1], spread=0.0)
    for query, hits in run.value().items():
        hits += to_hits(query, [("deeper", -1.0), ("deepest", -2.0)])
    with pytest.raises(ValueError, match="same score"):
        walk.checked.check(model, run)


def test_far_below_the_model_that_it_began_with():
    walk, begun = Dev(), initial()
    walk.check(begun, [1, 2, 2, 2])
    with pytest.raises(ValueError, match=r"RR@10 on dev fell from 0.625 \(initial\) to 0.250 \(p = .*rate"):
        walk.check(trained("one", begun), [2, 2, 0, 0])


def test_small_falls_add_up():
    """Each step loses 5 %, and the last one is far below the first."""
    walk, model = Dev(), initial()
    walk.check(model, [1] * 10)
    walk.check(model := trained("one", model), [1] * 9 + [2])
    with pytest.raises(ValueError, match=r"fell from 1.000 \(initial\) to 0.850"):
        walk.check(trained("two", model), [1] * 7 + [2] * 3)


def test_a_fall_that_may_be_chance_is_quiet():
    walk, begun = Dev(queries=10), initial()
    walk.check(begun, [1, 2, 2, 3, 0])
    walk.check(trained("one", begun), [2, 1, 3, 0, 2, 2])  # other queries are better, others worse
    walk, begun = Dev(queries=1), initial()
    walk.check(begun, [1])
    walk.check(trained("one", begun), [4])


def test_another_initial_checkpoint_is_no_measure():
    walk = Dev()
    walk.check(initial(), [1])
    other = InitialModel(Model.RETRIEVER, {"checkpoint": "another"}, lambda: None)
    walk.check(trained("one", other), [3])


def test_re_rankers_are_compared_over_the_same_hits():
    walk, kind = Dev(), Model.RERANKER
    walk.check(one := trained("one", initial(kind), kind), [1], over="of one")
    walk.check(two := trained("two", one, kind), [1, 3], over="of two")
    with pytest.raises(ValueError, match=r"fell from 0.667 \(two\) to 0.417"):
        walk.check(trained("three", two, kind), [2, 3], over="of two")


def test_no_better_than_chance():
    with pytest.raises(ValueError, match="RR@10 on dev is 0.000, no better than a random order, 0.01"):
        Dev().check(trained("one", initial()), [0])
    every_rank = [*range(1, 11)]  # what a random order of ten candidates gives
    with pytest.raises(ValueError, match="is 0.293, no better than a random order, 0.29.*easy_negatives"):
        Dev().check(trained("one", initial(Model.RERANKER), Model.RERANKER), every_rank)
    Dev().check(trained("one", initial()), every_rank)  # of the whole corpus, that is far from chance
    Dev(queries=29).check(trained("one", initial()), [0])  # too few to tell


def test_the_settings_say_whether_to_go_on(capsys):
    Dev(stop=False).check(trained("one", initial()), [0])
    assert capsys.readouterr().out.startswith("one: the retriever has collapsed: ")


def test_the_verdict_is_kept_until_what_it_rests_on_changes(monkeypatch):
    walk, begun, model = Dev(), initial(), trained("one", initial())
    walk.check(begun, [1, 1, 2, 2])
    for _ in range(2):
        with pytest.raises(ValueError, match="fell from 0.750"):
            walk.check(model, [3])
        monkeypatch.setattr(walk, "measure", lambda run: pytest.fail("measured again"))
    monkeypatch.undo()
    walk.dev = walk.dev.part("dev", [f"q{i}" for i in range(48)])
    with pytest.raises(ValueError, match="fell from 0.750"):
        walk.check(model, [3])
    walk.checked = CollapseCheck(walk)
    walk.check(model, [3])  # the initial checkpoint is not measured any more


# Trainings -----------------------------------------------------------------------------------------

RUINOUS = OptimizerSettings(learning_rate=10.0)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The toy collection with 40 dev queries."""
    made = toy.collection()
    dev = {f"d{i}": Query(f"d{i}", "where is a {} {}".format(*toy.PAIRS[i])) for i in range(40)}
    splits = {**made.splits, "dev": Split(dev, {f"d{i}": {f"p{i}": 1} for i in range(40)})}
    folder = tmp_path_factory.mktemp("asked") / "data"
    return toy.write(folder, Collection(made.passages, splits))


@pytest.fixture(scope="module")
def sound(asked, tmp_path_factory):
    """The settings of a run whose retriever has learned something, and whose re-ranker is not trained."""
    fast = OptimizerSettings(learning_rate=6e-3, warmup_ratio=0.1)
    settings = running.rocketqav2(
        tmp_path_factory.mktemp("sound") / "run",
        asked,
        warmup_retriever=WarmUpSettings(batch_size=20, steps=40, optimizer=fast),
        **running.from_scratch(asked),
        warmup_reranker=RerankerWarmUpSettings(queries=0),
    )
    train(settings, until_stage="warm-up")
    return settings


def test_a_sound_training_goes_on(sound):
    rows = running.table(running.text(sound, "steps.md"))
    assert rows["retriever, initial checkpoint"][0] < 0.4 < rows["retriever, warmed up"][0]


def check_collapse(settings, kind: Model, capsys) -> None:
    """The run ends after the training, and again when it is begun again; it goes on when it is told to."""
    told = f"warm-up: the {kind.title} has collapsed: "
    with pytest.raises(ValueError, match=f"^{told}.*--stop_on_collapse false"):
        train(settings)
    before = running.digests(settings)
    assert f"warm-up/{kind.value}" in before
    with pytest.MonkeyPatch.context() as patch:
        running.forbid(patch, running.NETWORKS)
        with pytest.raises(ValueError, match=f"^{told}"):
            train(settings)
    capsys.readouterr()
    train(change(settings, "", stop_on_collapse=False), until_stage="warm-up")
    assert told in capsys.readouterr().out
    assert running.digests(settings, kind.value) == {
        place: digest for place, digest in before.items() if place.endswith(kind.value)
    }


def test_a_retriever_that_collapses_ends_the_run_until_it_is_told_to_go_on(sound, tmp_path, capsys):
    init = f"{sound.output}/warm-up/retriever"
    settings = change(change(sound, "", output=str(tmp_path / "run")), "retriever", init=init)
    settings = change(settings, "warmup_retriever", steps=3, optimizer=RUINOUS)
    check_collapse(settings, Model.RETRIEVER, capsys)


def test_a_re_ranker_that_collapses_ends_the_run_until_it_is_told_to_go_on(sound, tmp_path, capsys):
    settings = running.copied(sound, tmp_path / "run")
    lists = RerankerWarmUpSettings(batch_size=4, steps=9, negatives=3, optimizer=RUINOUS)
    check_collapse(change(settings, "", warmup_reranker=lists), Model.RERANKER, capsys)
