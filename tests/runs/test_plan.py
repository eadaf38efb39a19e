"""The dry run: what a run would do, counted by hand, and that telling it writes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import running
import toy
from running import FAST, change, train

from rocketqa_paddle.mining.calibration import Calibration
from rocketqa_paddle.records import Model
from rocketqa_paddle.runs import plan
from rocketqa_paddle.runs.plan import Speed, Work
from rocketqa_paddle.runs.run import Run
from rocketqa_paddle.systems.ar2.settings import ICTSettings
from rocketqa_paddle.systems.rocketqav2 import run as v2_run
from rocketqa_paddle.systems.rocketqav2 import settings as v2_settings


@pytest.fixture(scope="module")
def warmed_up(data, tmp_path_factory):
    """The settings of a run that was ended after its warm-up."""
    settings = running.rocketqav2(tmp_path_factory.mktemp("run") / "run", data)
    train(settings, until_stage="warm-up")
    return settings


def rows(capsys) -> dict[str, list[str]]:
    """The cells of the table that was told, by step."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert head == ["step", "", "state", "steps", "trained", "encoded", "scored", "time", "disk"]
    return {row[0]: row[1:] for row in body}


def test_a_new_run_is_told_step_by_step(data, tmp_path, capsys):
    train(running.ar2(tmp_path / "run", data), dry_run=True)
    told = rows(capsys)
    assert list(told) == ["initial", "warm-up", "round-001", "round-002", "best"]
    assert [told[step][1] for step in list(told)[:-1]] == ["new"] * 4
    assert told["initial"][2:6] == ["0", "0", "80", "0"]  # the corpus, dev, test
    warm_up = [8, 4 * 8 * (1 + 1) + 4 * 4 * 4, 60 + 10 + 10 + 40 + 20, 10 * 10]
    assert told["warm-up"][2:6] == [str(number) for number in warm_up]
    texts, pairs = 3 * 4 * (1 + 4), 2 * 4 * 4  # the retriever's and the ranker's
    encoded, scored = 60 + 10 + 10 + 20, 3 * 4 * 4 + 10 * 10  # judged lists, and dev's candidates
    assert told["round-001"][2:6] == ["5", str(texts + pairs), str(encoded), str(scored)]
    assert told["round-002"][2:6] == ["5", str(texts + pairs), str(encoded - 20), str(scored)]
    assert not (tmp_path / "run").exists()


def test_candidates_are_scored_where_they_are_first_needed(data, tmp_path):
    """The candidates of a round, of labelled and of unlabelled queries; and those of dev, to be re-ranked."""
    _, planned = running.rehearse(running.rocketqav2(tmp_path / "run", data))
    assert planned.steps["round-001"].work.scored == 20 * 20 + 10 * 10
    assert planned.steps["round-001"].work.trained_pairs == 4 * 4 * 4
    _, planned = running.rehearse(running.rocketqa(tmp_path / "run", data))
    scored = {name: step.work.scored for name, step in planned.steps.items()}
    assert scored == {"step1": 0, "step2": 10 * 10, "step3": 25 * 10, "step4": 15 * 10}


def test_a_re_ranker_that_is_taken_as_it_is_needs_no_candidates(data, tmp_path):
    settings = change(running.rocketqav2(tmp_path / "run", data), "warmup_reranker", queries=0)
    _, planned = running.rehearse(settings)
    made = {artefact.name for artefact in planned.steps["warm-up"].missing}
    assert "warm-up/reranker" in made and "warm-up/hits.train.reranker" not in made


def test_a_dry_run_tells_what_the_folder_has_and_writes_nothing(warmed_up, capsys):
    def contents() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in Path(warmed_up.output).rglob("*")}

    before = contents()
    train(warmed_up, dry_run=True)
    assert [cells[1] for cells in rows(capsys).values()] == ["finished", "finished", "new", "new", ""]
    changed = change(warmed_up, "warmup_reranker", steps=5)
    train(changed, None, "warm-up", dry_run=True)
    said = capsys.readouterr().out
    assert "warm-up would be done again: steps was 4, is now 5" in said
    assert "| left out" in said
    train(changed, "round-001", dry_run=True)
    assert rows(capsys)["warm-up"][1] == "finished"
    with pytest.raises(ValueError, match="step round-001 is not finished: leave out --from-stage"):
        train(warmed_up, "round-002", dry_run=True)
    assert contents() == before


def test_what_is_cut_is_told_before_the_run_and_in_the_dry_run(warmed_up, tmp_path, capsys):
    settings = running.copied(warmed_up, tmp_path / "run")
    train(settings, dry_run=True)
    assert " are cut" not in capsys.readouterr().out
    short = change(change(settings, "retriever", passage_length=11), "reranker", length=17)
    expected = [
        "30 % of 60 passages are longer than the passage length, 11 tokens, and are cut; 12 tokens would "
        "keep 95 % of them whole",
        "20 % of 60 pairs are longer than the pair length, 17 tokens, and are cut; 18 tokens would keep 95 % "
        "of them whole",
    ]
    for selection in {"dry_run": True}, {"until_stage": "initial"}:
        train(short, **selection)
        assert [line for line in capsys.readouterr().out.splitlines() if " are cut" in line] == expected


def test_a_step_that_was_stopped_is_begun(warmed_up, tmp_path):
    settings = running.copied(warmed_up, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(running.Killed):
        running.kill_after(Run, "_save", 2)(patch)  # both models of round-001
        train(settings)
    assert [*running.statuses(settings).values()] == ["finished", "finished", "begun", "new"]
    _, planned = running.rehearse(settings)
    left = planned.steps["round-001"].left
    assert (left.steps, left.retrievers, left.encoded) == (0, 0, 60 + 10 + 10 + 20)


# Estimates ----------------------------------------------------------------------------------------


def test_work_adds_up_field_by_field():
    """Every field is a different number, so that none can stand in for another."""
    names = [field.name for field in dataclasses.fields(Work)]
    one = Work(**{name: 10**i for i, name in enumerate(names)})
    two = Work(**{name: 2 * 10**i for i, name in enumerate(names)})
    assert [getattr(one + two, name) for name in names] == [3 * 10**i for i in range(len(names))]
    assert one + Work() == one == Work() + one


def test_a_gradient_counts_as_two_more_passes():
    speed = Speed(text=1.0, pair=100.0)
    assert plan._seconds(Work(encoded=1, scored=1), speed) == 101
    assert plan._seconds(Work(trained_texts=1, trained_pairs=1), speed) == 303
    assert plan._seconds(Work(steps=9, hits=9, retrievers=9, rerankers=9), speed) == 0


@pytest.mark.parametrize(("rounds", "handed_on"), [(1, 0), (2, 2 * 40), (3, 2 * 2 * 40)])
def test_optimizers_that_wait_for_the_next_round_take_room(data, tmp_path, rounds, handed_on):
    """While a round is at work, those of the round before are still there."""
    settings = change(running.ar2(tmp_path / "run", data), "adversarial", rounds=rounds)
    _, planned = running.rehearse(settings)
    sizes = {Model.RETRIEVER: 10, Model.RERANKER: 30}
    assert plan._passing(planned, sizes) == 2 * 3 * 40 + handed_on


def test_the_disk_of_a_step_is_about_what_it_takes(warmed_up):
    run, planned = running.rehearse(warmed_up)
    models = {
        Model.RETRIEVER: run.initial_retriever().value(),
        Model.RERANKER: run.initial_reranker().value(),
    }
    sizes = {kind: 4 * plan._count_parameters(model) for kind, model in models.items()}
    folder = Path(warmed_up.output)
    for kind, size in sizes.items():
        taken = (folder / "warm-up" / kind.value / "model.safetensors").stat().st_size
        assert size <= taken < size + 20_000  # the names of the tensors
    hits = sum(path.stat().st_size for path in (folder / "warm-up").glob("hits.*.npy"))
    estimate = plan._disk(planned.steps["warm-up"].work, sizes) - sum(sizes.values())
    assert hits / 2 < estimate < 2 * hits
    index = sum(path.stat().st_size for path in (folder / "best" / "index").iterdir())
    assert index / 2 < plan._index_bytes(models[Model.RETRIEVER], run.corpus.passages.values()) < 2 * index


# Planned and done -------------------------------------------------------------------------------------

SOURCES = [
    list(chosen) for n in (1, 2, 3) for chosen in itertools.combinations(("random", "denoised", "pseudo"), n)
]


def planned_and_done(settings) -> list[tuple[int, int]]:
    """The steps of every training as the dry run counts them, and as they were taken."""
    _, planned = running.rehearse(settings)
    counted = {name: step.work.steps for name, step in planned.steps.items() if step.work.steps}
    with running.spied() as trainers:
        train(settings)
    taken: dict[str, int] = {}
    for name, trainer in trainers.items():
        step = name.split()[0]
        taken[step] = taken.get(step, 0) + trainer.total_steps
    assert counted.keys() == taken.keys()
    return [(counted[step], taken[step]) for step in counted]


def by_epochs(settings, *sections: str):
    """The same settings with one epoch instead of a number of steps."""
    for section in sections:
        settings = change(settings, section, steps=None)
    return settings


@pytest.mark.parametrize("sources", SOURCES, ids="-".join)
def test_every_source_of_groups_counts(data, tmp_path, monkeypatch, sources):
    """Where the re-ranker accepts and rejects enough, every source gives a group a query."""
    monkeypatch.setattr(v2_run.calibration, "calibrate", lambda *_: Calibration(slope=1e-9))  # all have 0.5
    monkeypatch.setattr(v2_settings, "check_thresholds", lambda *_: None)
    settings = by_epochs(running.rocketqav2(tmp_path / "run", data), "joint")
    settings = change(settings, "data", max_train_queries=25, unlabelled="train")
    settings = change(settings, "joint", rounds=1, queries=20)
    settings = change(settings, "joint.groups", sources=sources, negative_below=0.6, positive_above=0.4)
    counts = {"random": 20, "denoised": 20, "pseudo": 15}
    expected = math.ceil(sum(counts[source] for source in sources) / 4)
    assert planned_and_done(settings)[-1] == (expected, expected)


def test_the_steps_of_the_other_systems_are_those_that_are_taken(data, tmp_path):
    pair = by_epochs(running.pair(tmp_path / "pair", data), "teacher_retriever", "teacher_reranker")
    rocketqa = by_epochs(running.rocketqa(tmp_path / "rocketqa", data), "step1", "step3")
    rocketqa = change(rocketqa, "step1", negatives=2, one_negative_per_example=True)
    made = toy.collection()
    longer = {id: replace(p, text=f"{p.text} this is another sentence .") for id, p in made.passages.items()}
    sentences = toy.write(tmp_path / "sentences", replace(made, passages=longer))
    ict = ICTSettings(passages=30, batch_size=4, optimizer=FAST)
    ar2 = running.ar2(tmp_path / "ar2", sentences, ict=ict)
    ar2 = by_epochs(ar2, "adversarial.retriever", "adversarial.reranker", "warmup_reranker")
    for settings in (pair, rocketqa, ar2):
        for counted, taken in planned_and_done(settings):
            assert counted == taken, settings
