"""A step's result is told by the values that it was handed, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from rocketqa_paddle.records import Group, Model, Passage, Query
from rocketqa_paddle.runs.artefacts import Derived, Groups, InitialModel, Stored, changes, described, resolved
from rocketqa_paddle.runs.ledger import Ledger
from rocketqa_paddle.settings import OptimizerSettings, TrainingSettings, without_effect


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    memory: bool = without_effect(False)


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)


def loss(model: object, weight: float) -> float:
    return weight


def stored(name: str = "step1/hits", get=lambda artefact: "made", **made_of: object) -> Stored:
    return Stored(name, made_of, get, ending=".tsv")


# Values ------------------------------------------------------------------------------------------


def test_values_are_written_down_under_dotted_names():
    hits = stored(depth=3)
    values = {
        "settings": Outer(),
        "kind": Model.RERANKER,
        "path": Path("a/b"),
        "loss": partial(loss, weight=0.5),
        "hits": hits,
        "many": [hits, Inner()],
        "nothing": None,
        "empty": {},
    }
    assert described(values) == {
        "settings.name": "a",
        "settings.sizes": [1, 2],
        "settings.inner.rate": 0.1,
        "kind": "reranker",
        "path": "a/b",
        "loss.function": "loss",
        "loss.weight": 0.5,
        "hits": f"step1/hits {hits.fingerprint}",
        "many.0": str(hits),
        "many.1.rate": 0.1,
        "nothing": None,
    }


def test_a_value_that_cannot_be_told_from_others_is_refused():
    with pytest.raises(TypeError, match="Query is not a value that a step can be handed|object"):
        described({"x": object()})


@pytest.mark.parametrize(
    "change, told",
    [
        ({"batch_size": 16}, ["batch_size was 8, is now 16"]),
        ({"steps": 3}, ["steps was not set, is now 3"]),
        (
            {"optimizer": OptimizerSettings(learning_rate=2.0, decay="constant")},
            ["optimizer.decay was linear, is now constant", "optimizer.learning_rate was 1e-05, is now 2.0"],
        ),
        ({}, []),
    ],
)
def test_what_is_different_is_told(change, told):
    settings = TrainingSettings()
    before, now = (described(vars(s)) for s in (settings, replace(settings, **change)))
    assert changes(before, now) == told


def test_an_artefact_that_changed_is_told_by_its_name():
    before, now = ({"hits": stored(depth=depth)} for depth in (3, 4))
    assert changes(described(before), described(now)) == ["step1/hits changed"]
    assert changes(described(before), described({"hits": stored("step2/hits")}))[0].startswith(
        "hits was step1/hits"
    )


def test_settings_without_effect_change_nothing():
    assert stored(s=Inner(memory=True)).fingerprint == stored(s=Inner(memory=False)).fingerprint
    assert stored(s=Inner(rate=0.2)).fingerprint != stored(s=Inner(rate=0.1)).fingerprint


def test_derived_values_and_initial_models_are_told_by_what_they_are_made_of():
    derived = Derived(loss, {"model": stored(depth=3), "weight": 2})
    model = InitialModel(Model.RETRIEVER, {"pooling": "cls"}, lambda: None)
    assert described({"judge": derived, "retriever": model}) == {
        "judge.function": "loss",
        "judge.model": str(stored(depth=3)),
        "judge.weight": 2,
        "retriever.pooling": "cls",
    }


def test_results_take_the_places_of_artefacts():
    hits = stored()
    assert resolved({"a": [hits, 1], "b": hits}) == {"a": ["made", 1], "b": "made"}
    assert resolved(partial(loss, model=hits)).keywords == {"model": "made"}


def test_a_derived_value_is_computed_once_and_late():
    calls: list[int] = []
    derived = Derived(lambda hits: calls.append(1) or hits, {"hits": stored()})
    assert not calls
    assert derived.value() == derived.value() == "made"
    assert len(calls) == 1


def test_groups_are_joined_and_split():
    query, passages = Query("q", "text"), tuple(Passage(i, "", i) for i in "abc")
    group = Group(query, passages, (1, 0, 0), scores=(3.0, 2.0, 1.0))
    groups = Groups(lambda n: ([group] * n, ["note"]), {"n": 1}, at_most=1, size=3)
    both = groups + groups
    assert (both.at_most, both.size, both.value()) == (2, 3, ([group] * 2, ["note"] * 2))
    single = groups.one_per_negative()
    assert (single.at_most, single.size) == (2, 2)
    assert [g.scores for g in single.value()[0]] == [(3.0, 2.0), (3.0, 1.0)]
    assert groups.fingerprint not in (both.fingerprint, single.fingerprint)


# The ledger --------------------------------------------------------------------------------------


def make(folder: Path, artefact: Stored, text: str = "made") -> None:
    ledger = Ledger(folder)
    ledger.forget(artefact)
    (folder / artefact.place).write_text(text)
    ledger.keep(artefact)


def test_an_artefact_is_kept_if_it_was_made_of_the_same_values_and_is_there(tmp_path):
    hits = stored(depth=3)
    assert not Ledger(tmp_path).keeps(hits) and Ledger(tmp_path).reasons(hits) == []
    make(tmp_path, hits)
    assert Ledger(tmp_path).keeps(stored(depth=3))
    assert not Ledger(tmp_path).keeps(stored(depth=4))
    assert Ledger(tmp_path).reasons(stored(depth=4)) == ["depth was 3, is now 4"]
    (tmp_path / hits.place).unlink()
    assert Ledger(tmp_path).reasons(hits) == ["step1/hits is not there"]


def test_a_crash_while_an_artefact_is_made_leaves_no_record_of_it(tmp_path):
    """Whatever file lies there then, no later run takes it for the old result or for the new one."""
    make(tmp_path, stored(depth=3))
    ledger = Ledger(tmp_path)
    ledger.forget(stored(depth=4))
    for left in (None, "half of the new one"):
        if left:
            (tmp_path / stored().place).write_text(left)
        for depth in (3, 4):
            assert not Ledger(tmp_path).keeps(stored(depth=depth))
            assert Ledger(tmp_path).reasons(stored(depth=depth)) == []
    make(tmp_path, stored(depth=4))
    assert Ledger(tmp_path).keeps(stored(depth=4))


def test_what_is_trusted_is_taken_as_it_was_made(tmp_path):
    make(tmp_path, stored(depth=3))
    hits = stored(depth=4)
    Ledger(tmp_path).trust(hits)
    assert hits.fingerprint == stored(depth=3).fingerprint and Ledger(tmp_path).keeps(hits)
    with pytest.raises(ValueError, match="step step1 is not finished: leave out --from-stage"):
        Ledger(tmp_path).trust(stored("step1/other"))


def test_a_folder_that_is_not_a_step_s_is_refused(tmp_path):
    (tmp_path / "step1").mkdir()
    assert not Ledger(tmp_path).keeps(stored())
    (tmp_path / "step1" / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="step1 is not a step's .it has no step.json.: choose another --output"
    ):
        Ledger(tmp_path).keeps(stored())


def test_notes_stay_with_the_record(tmp_path):
    make(tmp_path, stored(depth=3))
    Ledger(tmp_path).note(stored(depth=3), measures={"RR@10": 0.5})
    assert Ledger(tmp_path).record(stored())["measures"] == {"RR@10": 0.5}
    make(tmp_path, stored(depth=3))
    assert "measures" not in Ledger(tmp_path).record(stored())
