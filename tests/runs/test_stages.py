"""What a run folder remembers of its stages, and which of them it does again."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.runs import stages
from rocketqa_paddle.runs.stages import RERANK_DEPTH, Ledger, Selection, Stage, State, Work

NAMES = ["one", "two", "three", "four"]
OLD, NEW = "0123456789abcdef", "fedcba9876543210"


def make(name="one", decisive=None, after=(), searches=None) -> Stage:
    """A stage that is never run."""
    decisive = {"one.steps": 4, "corpus": OLD} if decisive is None else decisive
    searches = {"dev queries": f"{OLD} to 10", "depth": 5} if searches is None else searches
    return Stage(name, f"stage {name}", lambda: pytest.fail("run"), decisive, after, searches)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "run")


def begin(ledger, stage, before=None) -> State:
    """As a run does; returns what the folder said before."""
    state = ledger.state(stage, before or {})
    ledger.begin(stage, state, 1)
    return state


def status(ledger, stage, before=None) -> tuple[str, list[str]]:
    """What the folder says, and the changes as they are told."""
    state = ledger.state(stage, before or {})
    return state.status, list(state.changes.values())


def do(ledger, stage, before=None) -> None:
    """Begin, leave what a stage leaves, finish."""
    state = begin(ledger, stage, before)
    folder = ledger.folder / stage.name
    for name in ("hits.dev.tsv", "hits.train.labelled.tsv", "reranked.dev.tsv", "scored.one.train.tsv"):
        (folder / name).write_text("q\tp\t1\t0.5\n")
    (folder / "retriever").mkdir(exist_ok=True)
    (folder / "retriever" / "model.safetensors").write_bytes(b"trained")
    ledger.finish(stage, state, 1)


def files(ledger, name="one") -> set[str]:
    folder = ledger.folder / name
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# States -------------------------------------------------------------------------------------------


def test_a_stage_is_new_then_begun_then_finished(ledger):
    stage = make()
    assert status(ledger, stage) == ("new", [])
    assert not ledger.folder.exists()  # asking writes nothing
    state = begin(ledger, stage)
    assert status(ledger, stage) == ("begun", [])
    ledger.finish(stage, state, 1)
    assert status(ledger, stage) == ("finished", [])
    assert status(Ledger(ledger.folder), stage) == ("finished", [])  # another process


@pytest.mark.parametrize("finished", [True, False])
def test_a_decisive_change_comes_before_a_searched_one(ledger, finished):
    (do if finished else begin)(ledger, make())
    both = make(decisive={"one.steps": 5, "corpus": OLD}, searches={"dev queries": f"{OLD} to 10"})
    assert status(ledger, both) == ("changed", ["one.steps was 4, is 5"])
    searched = make(searches={"dev queries": f"{OLD} to 10", "depth": 6})
    assert status(ledger, searched) == ("search again", ["depth was 5, is 6"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"a.start": "tiny"}, {"a.start": "step1"}, ["a.start was tiny, is step1"]),
        ({"a": True, "b": 0.5}, {"a": False, "b": None}, ["a was True, is False", "b was 0.5, is not set"]),
        ({"tests": ["x"]}, {"tests": ["x", "y"]}, ["tests was ['x'], is ['x', 'y']"]),
        ({"corpus": OLD}, {"corpus": NEW}, ["corpus changed"]),
        ({}, {"corpus": NEW}, ["corpus changed"]),
        ({"q": f"{OLD} to 5"}, {"q": f"{NEW} to 5"}, ["q changed"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a was 1, is 2", "b was 1, is 2"]),
        ({"gone": 1}, {}, ["gone was 1, is not set"]),
        ({"start": f"{OLD}f"}, {"start": "tiny"}, [f"start was {OLD}f, is tiny"]),  # 17 digits
    ],
)
def test_changes_are_told_as_what_was_and_what_is(ledger, old, new, told):
    do(ledger, make(decisive=old))
    assert status(ledger, make(decisive=new))[1] == told


def test_what_json_reads_back_otherwise_is_no_change(ledger):
    """A tuple is read back as a list, and the order of settings is nothing."""
    do(ledger, make(decisive={"a": ("x", "y"), "b": {"c": (1, 2)}}, searches={"s": (1,), "t": 2}))
    same = make(decisive={"b": {"c": [1, 2]}, "a": ["x", "y"]}, searches={"t": 2, "s": [1]})
    assert ledger.state(same, {}).status == "finished"


VALUES = st.one_of(st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from(["a", "b", OLD, NEW]))
FACTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def written(facts) -> str:
    return json.dumps({key: value for key, value in facts.items() if value is not None}, sort_keys=True)


@given(FACTS, FACTS, FACTS, FACTS)
def test_a_stage_is_finished_exactly_if_nothing_changed(tmp_path_factory, was, searched, now, asked):
    """None stands for a setting that is not there, so the two are one; True and 1 are not told apart."""
    ledger = Ledger(tmp_path_factory.mktemp("run"))
    do(ledger, make(decisive=was, searches=searched))
    state = ledger.state(make(decisive=now, searches=asked), {})
    values = [*was.values(), *now.values(), *searched.values(), *asked.values()]
    if not any(isinstance(value, bool) for value in values):
        decided, same = written(was) == written(now), written(searched) == written(asked)
        assert state.status == ("changed" if not decided else "finished" if same else "search again")
    assert bool(state.changes) == (state.status != "finished")
    assert ledger.state(make(decisive=was, searches=searched), {}).status == "finished"


# Clearing -----------------------------------------------------------------------------------------


def test_a_changed_stage_begins_with_nothing(ledger):
    do(ledger, make())
    assert begin(ledger, make(decisive={"one.steps": 5})).status == "changed"
    assert files(ledger) == {"stage.json"}
    assert ledger.state(make(decisive={"one.steps": 5}), {}).status == "begun"


def test_another_depth_of_re_ranking_keeps_what_was_retrieved(ledger):
    do(ledger, make(searches={RERANK_DEPTH: 10}))
    assert begin(ledger, make(searches={RERANK_DEPTH: 20})).status == "search again"
    assert files(ledger) >= {"hits.dev.tsv", "hits.train.labelled.tsv"}
    assert "reranked.dev.tsv" not in files(ledger)


def test_searching_again_keeps_what_was_trained_and_scored(ledger):
    do(ledger, make())
    assert begin(ledger, make(searches={})).status == "search again"
    assert files(ledger) == {"stage.json", "retriever/model.safetensors", "scored.one.train.tsv"}
    assert ledger.state(make(searches={}), {}).status == "begun"


@pytest.mark.parametrize("finished", [True, False])
def test_going_on_clears_nothing(ledger, finished):
    do(ledger, make())
    if not finished:
        ledger.begin(make(), State("begun", make().decisive), 1)
    before = files(ledger)
    begin(ledger, make())
    assert files(ledger) == before


def test_files_of_something_else_are_refused_and_kept(ledger):
    folder = ledger.folder / "one"
    folder.mkdir(parents=True)
    begin(ledger, make())  # an empty folder is nobody's
    (folder / "stage.json").unlink()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder))} is not a stage's .*another --output"):
        begin(ledger, make())
    assert files(ledger) == {"thesis.txt"}


def test_a_crash_while_clearing_can_be_gone_on_from(ledger, monkeypatch):
    """The record goes last, or what is left of our own stage looks like somebody else's."""
    do(ledger, make())
    changed = make(decisive={"one.steps": 5})

    def crash(folder, *_, **__):  # in the order that shutil.rmtree is free to take
        (folder / "stage.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.shutil, "rmtree", crash)
        begin(ledger, changed)
    begin(ledger, changed)
    assert files(ledger) == {"stage.json"}


def test_a_record_that_is_cut_off_is_named(ledger):
    do(ledger, make())
    path = ledger.folder / "one" / "stage.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        ledger.state(make(), {})


# Digests ------------------------------------------------------------------------------------------


def chain(steps=4, depth=5) -> list[Stage]:
    """`two` reads `one`, `three` reads `two`, `four` reads nothing."""
    return [
        make("one", {"steps": steps}, searches={"depth": depth}),
        make("two", {"steps": 4}, after=("one",)),
        make("three", {"steps": 4}, after=("two",)),
        make("four", {"steps": 4}),
    ]


def digests(chained) -> dict[str, str]:
    made: dict[str, str] = {}
    for stage in chained:
        made[stage.name] = Ledger(Path("nowhere")).state(stage, made).digest
    return made


def test_a_change_reaches_the_stages_after_it_and_no_other(ledger):
    before = digests(chain())
    for stage in chain():
        do(ledger, stage, before)
    after = digests(chain(steps=5))
    assert {name for name in NAMES if after[name] != before[name]} == {"one", "two", "three"}
    states = {stage.name: ledger.state(stage, after) for stage in chain(steps=5)}
    assert {name: state.status for name, state in states.items()} == {
        **dict.fromkeys(NAMES[:3], "changed"),
        "four": "finished",
    }
    told = [list(states[name].changes.values()) for name in NAMES[:3]]
    assert told == [["steps was 4, is 5"], ["stage one changed"], ["stage two changed"]]


def test_what_is_searched_does_not_reach_the_stages_after(ledger):
    assert digests(chain(depth=6)) == digests(chain())


def test_a_trusted_stage_is_as_it_was_done(ledger):
    """Whatever would decide it now; what is searched counts all the same."""
    do(ledger, make())
    before = ledger.state(make(), {}).digest
    now = make(decisive={"one.steps": 5})
    assert (ledger.trusted(now).status, ledger.trusted(now).digest) == ("finished", before)
    searched = make(decisive={"one.steps": 5}, searches={})
    assert (ledger.trusted(searched).status, ledger.trusted(searched).digest) == ("search again", before)
    ledger.begin(searched, ledger.trusted(searched), 1)  # and is stopped then
    assert (ledger.trusted(searched).status, ledger.trusted(searched).digest) == ("begun", before)


def test_a_stage_that_is_not_trained_cannot_be_trusted(ledger):
    begin(ledger, make("two"))
    for name in ("two", "three"):  # begun, never seen
        with pytest.raises(ValueError, match=rf"stage {name} is not finished: leave out --from-stage"):
            ledger.trusted(make(name))


@given(FACTS)
def test_digests_look_like_digests_whatever_the_order(facts):
    value = stages.digest(facts)
    assert re.fullmatch(r"[0-9a-f]{16}", value)
    assert stages.digest(dict(reversed(facts.items()))) == value


# Selection and work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(from_stage="five"), "--from-stage five: this run's stages are one, two, three, four"),
        (Selection(until_stage="five"), "--until-stage five: this run's stages are one, two, three, four"),
        (Selection("three", "two"), "--from-stage three comes after --until-stage two"),
    ],
)
def test_a_selection_that_cannot_be(selection, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        selection.check(NAMES)


@given(st.sampled_from([None, *NAMES]), st.sampled_from([None, *NAMES]))
def test_a_selection_splits_the_stages(first, last):
    selection = Selection(first, last)
    begin_at, end_at = NAMES.index(first or NAMES[0]), NAMES.index(last or NAMES[-1])
    if begin_at > end_at:
        with pytest.raises(ValueError, match="comes after"):
            selection.check(NAMES)
        return
    selection.check(NAMES)
    given_stages, wanted = selection.split(NAMES)
    assert list(given_stages) == NAMES[:begin_at]
    assert list(wanted) == NAMES[begin_at : end_at + 1]


def test_work_adds_up_field_by_field():
    """Every field is a different number, so that none can stand in for another."""
    names = [field.name for field in dataclasses.fields(Work) if field.type == "int"]
    one = Work(("retriever",), optimizers=("reranker",), **{name: 10**i for i, name in enumerate(names)})
    two = Work(("reranker",), **{name: 2 * 10**i for i, name in enumerate(names)})
    both = one + two
    assert tuple(both.models) == ("retriever", "reranker")
    assert tuple(both.optimizers) == ("reranker",)
    assert [getattr(both, name) for name in names] == [3 * 10**i for i in range(len(names))]
    assert one + Work() == one == Work() + one
