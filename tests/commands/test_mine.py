"""`rocketqa mine`: every policy, the report, and what it refuses."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import toy
from scipy.special import expit

from rocketqa_paddle import checkpoints
from rocketqa_paddle.commands import cli
from rocketqa_paddle.data.groups import read_groups
from rocketqa_paddle.data.runs import write_run
from rocketqa_paddle.mining.calibration import calibrate
from rocketqa_paddle.networks import forward
from rocketqa_paddle.records import Query
from rocketqa_paddle.search import retrieval

COLLECTION = toy.collection()
DEV, UNLABELLED = COLLECTION.splits["dev"], COLLECTION.splits["unlabelled"]
QUERIES = DEV.queries | UNLABELLED.queries
QUERY_IDS = {query.text: query.id for query in QUERIES.values()}
BY_TEXT = {passage.text: passage for passage in COLLECTION.passages.values()}
TEXT_OF_P0 = COLLECTION.passages["p0"].text
DEPTH, SCORED, NEGATIVES = 30, 10, 4
SUFFIXES = {"list": "tsv", "dual": "tsv", "tevatron": "jsonl"}


def make_run(queries, *positive):
    """30 hits a query: its animal's passage, of these scores in turn, and others from 2 down to -20."""
    run = {}
    for number, query_id in enumerate(queries):
        own = f"p{re.sub('[a-z]', '', query_id)}"
        others = random.Random(number).sample([i for i in COLLECTION.passages if i != own], DEPTH - 1)
        scores = [positive[number % len(positive)], *np.linspace(2, -20, DEPTH - 1).tolist()]
        found = sorted(zip([own, *others], scores, strict=True), key=lambda hit: -hit[1])
        run[query_id] = retrieval.to_hits(query_id, found)
    return run


RUN = make_run(QUERIES, 4.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The collection, a file of labelled and unlabelled queries, and runs."""
    folder = toy.write(tmp_path_factory.mktemp("data") / "toy")
    both = [(folder / f"{name}.query.txt").read_text() for name in ("dev", "unlabelled")]
    (folder / "both.query.txt").write_text("".join(both))
    write_run(folder / "all.run", RUN)
    alike = {i: [replace(hit, score=0.0) for hit in hits] for i, hits in RUN.items()}
    write_run(folder / "alike.run", alike)
    write_run(folder / "other.run", {"other": retrieval.to_hits("other", [("p1", 1.0)])})
    write_run(folder / "strange.run", {"dev0": retrieval.to_hits("dev0", [("p999", 1.0)])})
    write_run(folder / "wrong.run", make_run(QUERIES, -30.0))
    (folder / "strange.qrels").write_text("dev0\tp998\n")
    return folder


@pytest.fixture
def line(files, tmp_path):
    """The command's words: denoised from the run's own scores. Changes replace flags; None takes one away."""

    def words(**changes):
        flags = {
            "queries": files / "dev.query.txt",
            "passages": files / "para.txt",
            "titles": files / "para.title.txt",
            "qrels": files / "qrels.dev.tsv",
            "run": files / "all.run",
            "policy": "denoised",
            "output": tmp_path / "groups.tsv",
            "scored": SCORED,
            "negatives": NEGATIVES,
        } | changes
        given = {name: value for name, value in flags.items() if value is not None}
        return ["mine", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]

    return words


def read(path, format="list"):
    """Query id → passage ids, the positive first; checks labels, titles and numbers."""
    groups = list(read_groups(path, 1 + NEGATIVES if format == "list" else None))
    found: dict[str, list[str]] = {}
    for group in groups:
        assert group.labels == (1, *[0] * (len(group.passages) - 1))
        known = [BY_TEXT[passage.text] for passage in group.passages]
        assert [passage.title for passage in group.passages] == [passage.title for passage in known]
        first, *others = [passage.id for passage in known]
        ids = found.setdefault(QUERY_IDS[group.query.text], [first])
        assert ids[0] == first
        ids += others
    assert len(groups) == len(found) * (NEGATIVES if format == "dual" else 1)
    assert all(len(set(ids)) == 1 + NEGATIVES for ids in found.values())
    return found


def score_all(best, queries) -> dict[str, dict[str, float]]:
    """The re-ranker's probability of every candidate of every query."""
    model, chances = checkpoints.load(best / "reranker"), {}
    for query in queries.values():
        found = [COLLECTION.passages[hit.passage_id] for hit in RUN[query.id]]
        columns = [query.text] * DEPTH, [p.title for p in found], [p.text for p in found]
        scores = expit(forward.score_pairs(model, *columns)).reshape(-1).tolist()
        chances[query.id] = {p.id: score for p, score in zip(found, scores, strict=True)}
    return chances


# What it makes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["list", "dual", "tevatron"])
@pytest.mark.parametrize("policy", ["random", "hard", "denoised", "pseudo"])
def test_every_policy_in_every_format(line, files, tmp_path, capsys, policy, format):
    """Read back: a labelled positive first (for pseudo the best candidate), no positive among negatives."""
    output = tmp_path / "new" / f"groups.{SUFFIXES[format]}"
    run = None if policy == "random" else files / "all.run"
    cli.main(line(policy=policy, queries=files / "both.query.txt", run=run, output=output, format=format))
    found = read(output, format)
    pseudo = policy == "pseudo"
    wanted = UNLABELLED.queries if pseudo else DEV.queries
    assert list(found) == list(wanted)
    for query_id, (first, *others) in found.items():
        if pseudo:
            assert first == RUN[query_id][0].passage_id
        else:
            assert first in DEV.qrels[query_id]
            assert not DEV.qrels[query_id].keys() & set(others)
        if policy != "random":
            assert set(others) <= {hit.passage_id for hit in RUN[query_id]}
    out = capsys.readouterr().out
    assert f"10 of 20 queries {'are labelled' if pseudo else 'have no label'}: left out\n" in out
    assert out.endswith(f"10 groups of {1 + NEGATIVES} passages in {output}\n")


def test_hard_honours_skip(line, tmp_path):
    cli.main(line(policy="hard", skip=DEPTH - NEGATIVES))
    for query_id, (_, *others) in read(tmp_path / "groups.tsv").items():
        assert set(others) == {hit.passage_id for hit in RUN[query_id][-NEGATIVES:]}


def test_without_a_reranker_the_runs_scores_count(line, tmp_path):
    """A re-ranker wrote the hits, so all count: five a query are below, and four of these are taken."""
    cut = 2 - 22 * (DEPTH - 7) / (DEPTH - 2) + 0.01  # just above the score of the fifth last
    cli.main(line(negative_below=expit(cut)))
    for query_id, (_, *others) in read(tmp_path / "groups.tsv").items():
        assert set(others) < {hit.passage_id for hit in RUN[query_id][-6:]}


def test_the_hardest_are_the_first_in_the_runs_order(line, tmp_path):
    cut = 2 - 22 * (DEPTH - 12) / (DEPTH - 2)
    cli.main(line(negative_below=expit(cut), choose="hardest"))
    for query_id, (_, *others) in read(tmp_path / "groups.tsv").items():
        rejected = [hit.passage_id for hit in RUN[query_id] if hit.score < cut]
        assert others == rejected[:NEGATIVES]


@pytest.mark.parametrize("quantile", [0.1, 0.4, 0.9])
def test_denoised_by_the_rerankers_own_scores(line, best, tmp_path, capsys, quantile):
    """All that are scored and rejected before any deeper one; what is scored and not rejected, never."""
    chances = score_all(best, DEV.queries)
    below = float(np.quantile([value for row in chances.values() for value in row.values()], quantile))
    cli.main(line(reranker=best / "reranker", negative_below=below))
    deep = 0
    for query_id, (_, *others) in read(tmp_path / "groups.tsv").items():
        ids = [hit.passage_id for hit in RUN[query_id]]
        rejected = {i for i in ids[:SCORED] if chances[query_id][i] < below} - DEV.qrels[query_id].keys()
        assert len(rejected & set(others)) == min(NEGATIVES, len(rejected))
        assert set(others) - rejected <= set(ids[SCORED:])
        deep += len(set(others) - rejected)
    counted = re.search(r"(\d+) negatives from deeper", capsys.readouterr().out)
    assert deep == (int(counted[1]) if counted else 0)
    assert bool(deep) == (quantile < 0.9)


def test_pseudo_by_the_rerankers_own_scores(line, best, files, tmp_path):
    chances = score_all(best, UNLABELLED.queries)
    scored = {i: {hit.passage_id: chances[i][hit.passage_id] for hit in RUN[i][:SCORED]} for i in chances}
    best_ones = {i: max(row, key=row.get) for i, row in scored.items()}
    above = float(np.median([scored[i][top] for i, top in best_ones.items()]))
    thresholds = {"negative_below": above - 0.01, "positive_above": above}
    both, reranker = files / "both.query.txt", best / "reranker"
    cli.main(line(policy="pseudo", queries=both, reranker=reranker, **thresholds))
    found = {i: ids[0] for i, ids in read(tmp_path / "groups.tsv").items()}
    assert found == {i: top for i, top in best_ones.items() if scored[i][top] > above}
    assert 0 < len(found) < 10


def test_pseudo_needs_no_labels(line, files, tmp_path, capsys):
    cli.main(line(policy="pseudo", qrels=None, queries=files / "unlabelled.query.txt"))
    assert len(read(tmp_path / "groups.tsv")) == 10
    assert "left out" not in capsys.readouterr().out


def test_a_seed_decides_the_file(line, tmp_path):
    written = []
    for seed in (1, 1, 2):
        cli.main(line(policy="hard", seed=seed))
        written.append((tmp_path / "groups.tsv").read_bytes())
    assert written[0] == written[1] != written[2]


def test_what_it_makes_trains(line, files, tmp_path, capsys):
    """A joint round on the lists of the file, of all its queries."""
    cli.main(line())
    short = {"warmup_retriever.queries": 0, "warmup_reranker.queries": 0, "joint.rounds": 1}
    lists = {"joint.groups.file": tmp_path / "groups.tsv", "joint.groups.negatives": NEGATIVES}
    flags = toy.flags(**{"data.folder": files, "output": tmp_path / "run"}, **short, **lists)
    cli.main(["train", "rocketqav2", *flags])
    assert (tmp_path / "run" / "round-001" / "reranker").is_dir()
    assert re.search(r'"cross_entropy": \d', (tmp_path / "run" / "metrics.jsonl").read_text())


# The report ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, "random", "denoised"])
def test_report_alone_and_with_a_policy(line, tmp_path, capsys, policy):
    """Positives are at 0.73 and 0.98, the best others at 0.88."""
    write_run(tmp_path / "mixed.run", make_run(DEV.queries, 4.0, 1.0))
    output = tmp_path / "groups.tsv"
    cli.main(
        line(report="true", policy=policy, output=output if policy else None, run=tmp_path / "mixed.run")
    )
    out = capsys.readouterr().out
    assert f"10 labelled positives | {10 * (DEPTH - 1)} other candidates" in re.sub(" +", " ", out)
    assert len(re.findall(r"^\| 0\.\d to ", out, flags=re.MULTILINE)) == 10
    below, above = map(float, re.search(r"--negative_below (\S+) --positive_above (\S+)", out).groups())
    assert below == 0.5  # no higher than needed
    assert 0.88 <= above <= 0.89
    assert output.exists() == bool(policy)


def test_report_of_scores_that_are_easy_to_part(line, capsys):
    """A positive is at 0.98, others are at 0.88 and less."""
    cli.main(line(report="true", policy=None, output=None))
    assert "suggested: --negative_below" in capsys.readouterr().out


def test_report_scores_labelled_positives_that_the_run_lacks(line, files, best, tmp_path, capsys):
    write_run(tmp_path / "few.run", {i: RUN[i][1:] for i in DEV.queries})
    cli.main(
        line(report="true", policy=None, output=None, run=tmp_path / "few.run", reranker=best / "reranker")
    )
    assert "| 10 labelled positives" in capsys.readouterr().out


def test_calibrate(line, tmp_path):
    """Scores of a list-trained re-ranker have no zero: without calibration, all are above the threshold."""
    shifted = {i: [replace(hit, score=hit.score + 100) for hit in RUN[i]] for i in DEV.queries}
    write_run(tmp_path / "high.run", shifted)
    cli.main(line(run=tmp_path / "high.run", scored=DEPTH, calibrate="true", negative_below=0.2))
    fitted = calibrate(shifted, DEV.qrels, 1)
    for query_id, (_, *others) in read(tmp_path / "groups.tsv").items():
        chances = {h.passage_id: fitted.probability(h.score) for h in shifted[query_id]}
        assert max(chances[i] for i in others) < 0.2


# Mistakes -----------------------------------------------------------------------------------------


@pytest.fixture
def fails(capsys, tmp_path):
    """A command that must exit 2 and write no file; returns its message."""

    def fail(words) -> str:
        with pytest.raises(SystemExit) as exit:
            cli.main(words)
        assert exit.value.code == 2
        err = "\n".join(row for row in capsys.readouterr().err.split("\n") if "rows/s" not in row)
        assert "Traceback" not in err
        assert not list(tmp_path.iterdir())
        return err

    return fail


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": None, "output": None}, "--policy random|hard|denoised|pseudo, or --report"),
        ({"policy": "best"}, "policy"),
        ({"output": None}, "--policy needs --output"),
        ({"policy": None, "report": "true"}, "--output a --policy"),
        ({"qrels": None}, "--qrels is missing"),
        ({"policy": "pseudo", "qrels": None, "report": "true"}, "--qrels is missing"),
        ({"run": None}, "--run is missing"),
        ({"policy": "random", "run": None, "report": "true"}, "--run is missing"),
        ({"negative_below": 0.9, "positive_above": 0.1}, "0 < negative_below < positive_above < 1"),
        ({"positive_above": 1.5}, "positive_above=1.5"),
        (
            {"run": "{files}/alike.run", "scored": 50},
            "no candidate has a probability below.*0.500 to 0.500.*mine --report",
        ),
        ({"run": "{files}/other.run"}, "hits for none of 10 queries.*--queries and --run belong together"),
        ({"run": "{files}/other.run", "calibrate": "true"}, "--queries and --run belong together"),
        ({"qrels": "{files}/qrels.test.tsv"}, "no query has a label.*--queries and --qrels belong together"),
        ({"run": "{files}/strange.run"}, "para.txt: 1 passages .*for example 'p999'"),
        ({"qrels": "{files}/strange.qrels"}, "para.txt: 1 passages .*for example 'p998'"),
        ({"negatives": 60}, "60 negatives a group, but the corpus has only 60 passages"),
        ({"policy": "pseudo"}, "every query is labelled"),
        ({"reranker": "{best}/retriever"}, "retriever is a dual_encoder, expected a cross_encoder"),
        ({"reranker": "{best}/nothing"}, "nothing"),
        *[({name: value}, f"{name}={value}") for name in ("negatives", "scored") for value in (0, -1)],
        ({"skip": -1}, "skip=-1"),
        ({"policy": "hard", "choose": "hardest"}, "--choose hardest is for --policy denoised and pseudo"),
        ({"batch_size": 0, "reranker": "{best}/reranker"}, "batch_size=0"),
        ({"run": "{files}/wrong.run", "calibrate": "true"}, "above labelled positives"),
        ({"qrels": "{files}/none.tsv"}, "none.tsv: no such file"),
        ({"policy": "hard", "output": "{files}"}, "a folder, expected the name of a file to write"),
    ],
)
def test_mistakes(line, fails, files, best, changes, message):
    """Each tells what is wrong in words of the command line, and leaves nothing behind."""
    here = {"files": files, "best": best}
    changes = {k: v.format(**here) if isinstance(v, str) else v for k, v in changes.items()}
    assert re.search(message, fails(line(**changes)), flags=re.DOTALL)


def beir(folder, texts):
    """The collection's passages and labelled queries as BEIR's files, with other texts for some ids."""
    folder.mkdir()
    files = {
        "corpus.jsonl": [(p.id, p.title, p.text) for p in COLLECTION.passages.values()],
        "queries.jsonl": [(query.id, "", query.text) for query in DEV.queries.values()],
    }
    for name, rows in files.items():
        items = [{"_id": id, "title": title, "text": texts.get(id, text)} for id, title, text in rows]
        (folder / name).write_text("".join(f"{json.dumps(item)}\n" for item in items))
    paths = {"queries": folder / "queries.jsonl", "passages": folder / "corpus.jsonl"}
    return {**paths, "titles": None}


def test_files_of_beir_and_texts_that_begin_with_a_byte_order_mark(line, files, tmp_path):
    """The layout `list` gives such a passage back; the positive of the first query is the first."""
    marked = beir(tmp_path / "marked", {"p0": "\ufeffa passage"})
    cli.main(line(**marked))
    written = (tmp_path / "groups.tsv").read_text()
    cli.main(line())
    assert written == (tmp_path / "groups.tsv").read_text().replace(TEXT_OF_P0, "\ufeffa passage")
    groups = list(read_groups(tmp_path / "groups.tsv", 1 + NEGATIVES))
    assert len(groups) == len(DEV.queries)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"p7": "a\nb", "p9": "c\rd"},
            "corpus.jsonl: 2 texts .*the first is passage 'p7', which has a tab or",
        ),
        ({"dev3": "\ufeffwhere"}, "queries.jsonl: 1 texts .*the first is query 'dev3', .* byte-order mark"),
        ({"p7": "\ud83d"}, "corpus.jsonl:8: passage 'p7' has '.ud83d' in it"),
    ],
)
def test_texts_that_the_layout_cannot_hold(line, fails, best, tmp_path_factory, monkeypatch, texts, message):
    monkeypatch.setattr(retrieval, "rerank", None)
    changes = beir(tmp_path_factory.mktemp("texts") / "beir", texts)
    assert re.search(message, fails(line(reranker=best / "reranker", **changes)))


def test_passages_without_a_text_are_left_out(line, tmp_path, capsys):
    empty = {hit.passage_id: "" for hit in RUN["dev0"][5:] if not COLLECTION.passages[hit.passage_id].title}
    for own in DEV.qrels.values():
        empty = {id: text for id, text in empty.items() if id not in own}
    cli.main(line(policy="hard", **beir(tmp_path / "beir", empty)))
    told = f"the {len(empty)} passages without title and text are left out\n"
    assert told in capsys.readouterr().out
    assert all(ids for ids in read(tmp_path / "groups.tsv").values())


@pytest.mark.parametrize(
    "changes",
    [{"negatives": 60}, {"policy": "pseudo"}, {"qrels": "test"}, {"output": "folder"}],
    ids=["negatives", "all labelled", "other labels", "output"],
)
def test_mistakes_are_told_before_any_scoring(line, fails, files, best, monkeypatch, changes):
    """Which may take hours."""

    def refuse(*_, **__):
        raise AssertionError("scoring began before the mistake was told")

    monkeypatch.setattr(retrieval, "rerank", refuse)
    paths = {"test": files / "qrels.test.tsv", "folder": files}
    changes = {name: paths.get(value, value) for name, value in changes.items()}
    fails(line(reranker=best / "reranker", **changes))


@pytest.mark.parametrize(
    ("changes", "name", "named"),
    [
        ({"format": "tevatron"}, "x.tsv", "x.tsv"),
        ({"format": "list"}, "x.jsonl", "x.jsonl"),
        ({"format": "dual"}, "x.json", "x.json"),
        ({"policy": "hard", "calibrate": "true"}, "x.tsv", "--calibrate"),
    ],
)
def test_done_or_refused_by_name(line, tmp_path, capsys, changes, name, named):
    """The reader tells formats by name; and a policy that scores nothing has nothing to calibrate."""
    try:
        cli.main(line(**changes, output=tmp_path / name))
    except SystemExit as exit:
        assert exit.code == 2
        assert named in capsys.readouterr().err
    else:
        assert len(read(tmp_path / name, changes.get("format", "list"))) == 10


def test_queries_with_one_text_are_one_to_pseudo(line, files, tmp_path, capsys):
    """A labelled query under another id is still labelled."""
    again = Query("again", DEV.queries["dev0"].text)
    rows = [again, *UNLABELLED.queries.values(), *DEV.queries.values()]
    (tmp_path / "queries").write_text("\n".join(f"{query.id}\t{query.text}" for query in rows))
    cli.main(line(policy="pseudo", queries=tmp_path / "queries"))
    assert list(read(tmp_path / "groups.tsv")) == list(UNLABELLED.queries)
    assert "11 of 21 queries are labelled: left out" in capsys.readouterr().out


def test_a_twin_of_the_positive_is_no_negative_unless_asked_for(line, files, tmp_path, capsys):
    """Of passages 0 and 1, the second says what the first says."""
    twin = "p1\tTHE red  dog lives near a river ."
    lines = [twin if row.startswith("p1\t") else row for row in (files / "para.txt").read_text().splitlines()]
    (tmp_path / "para.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "q").write_text("q\twhere?\n")
    (tmp_path / "qrels").write_text("q\tp0\n")
    hits = retrieval.to_hits("q", [(f"p{i}", -10.0 - i) for i in range(6)])
    write_run(tmp_path / "run", {"q": hits})
    given = {"queries": tmp_path / "q", "qrels": tmp_path / "qrels", "passages": tmp_path / "para.txt"}
    given |= {"titles": None, "run": tmp_path / "run", "policy": "hard"}
    for drop in ("true", "false"):
        cli.main(line(**given, drop_false_negatives=drop))
        told = (
            "1 candidates left out (their title and text are those of a positive" in capsys.readouterr().out
        )
        [group] = read_groups(tmp_path / "groups.tsv", 1 + NEGATIVES)
        is_negative = twin.split("\t")[1] in [passage.text for passage in group.passages]
        assert (told, is_negative) == ((True, False) if drop == "true" else (False, True))
