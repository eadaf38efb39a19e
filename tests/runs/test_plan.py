"""The dry run: what a run would do, counted by hand, and that telling it writes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import running
from running import change, train

from rocketqa_paddle.records import Model
from rocketqa_paddle.runs import plan
from rocketqa_paddle.runs.plan import Speed, Work
from rocketqa_paddle.runs.run import Run


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
    hits = sum(path.stat().st_size for path in (folder / "warm-up").glob("hits.*.tsv"))
    estimate = plan._disk(planned.steps["warm-up"].work, sizes) - sum(sizes.values())
    assert hits / 2 < estimate < 2 * hits
    index = sum(path.stat().st_size for path in (folder / "best" / "index").iterdir())
    assert index / 2 < plan._index_bytes(models[Model.RETRIEVER], run.corpus.passages.values()) < 2 * index
