"""Every command as its user types it: what it prints and writes, and how it says that the user erred."""

from __future__ import annotations

import logging
import re
import shutil
import sys

import numpy as np
import paddle
import pytest
import toy

import rocketqa_paddle
from rocketqa_paddle import checkpoints
from rocketqa_paddle.commands import cli
from rocketqa_paddle.data import formats
from rocketqa_paddle.evaluation import metrics
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.index import VectorIndex

COLLECTION = toy.collection()
COMMANDS = ["train", "train rocketqav2", "compare", *cli.COMMANDS]


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return toy.write_best(tmp_path_factory.mktemp("run") / "best")


@pytest.fixture(scope="module")
def a_run(best, data, tmp_path_factory):
    """A run of the dev queries, 10 passages each."""
    retriever = checkpoints.load(best / "retriever")
    index = retrieval.CorpusIndex(retriever, COLLECTION.passages, progress="")
    path = tmp_path_factory.mktemp("runs") / "dev.run"
    formats.write_run_tsv(path, index.search(COLLECTION.splits["dev"].queries, 10))
    return path


def run(*words) -> None:
    cli.main([str(word) for word in words])


def words(**flags) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def fails(capsys):
    """Run a command that must exit 2; returns what it prints to stderr."""

    def fail(*line) -> str:
        with pytest.raises(SystemExit) as exit:
            run(*line)
        out, err = capsys.readouterr()
        assert exit.value.code == 2
        assert out == ""
        assert "Traceback" not in err
        lines = [line for line in err.rstrip("\n").split("\n") if "rows/s" not in line]  # no bars
        if lines[0].startswith("rocketqa: "):
            assert all(line.startswith("  ") for line in lines[1:]), "one line, or one and a list"
            return "\n".join(lines)
        return err[err.index("error:") :]  # the parser's own: usage, and the line that begins with `error:`

    return fail


# The commands do what they say --------------------------------------------------------------------


def test_encode_passages(best, data, tmp_path, capsys):
    flags = words(
        checkpoint=best / "retriever",
        input=data / "para.txt",
        titles=data / "para.title.txt",
        output=tmp_path / "new" / "vectors",
        batch_size=7,
    )
    run("encode", *flags)
    assert capsys.readouterr().out == f"60 vectors of 16 dimensions in {tmp_path}/new/vectors.npy\n"
    vectors = np.load(tmp_path / "new" / "vectors.npy")
    assert (tmp_path / "new" / "vectors.ids.txt").read_text().split("\n") == [*COLLECTION.passages, ""]
    columns = zip(*((p.title, p.text) for p in COLLECTION.passages.values()), strict=True)
    expected = retrieval.encode_passages(checkpoints.load(best / "retriever"), *columns)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("output", ["vectors", "vectors.npy"])
def test_encode_queries(best, data, tmp_path, capsys, output):
    queries = COLLECTION.splits["dev"].queries
    run(
        "encode",
        *words(checkpoint=best / "retriever", input=data / "dev.query.txt", output=tmp_path / output),
        *words(kind="queries"),
    )
    assert capsys.readouterr().out.startswith("10 vectors of 16 dimensions")
    expected = retrieval.encode_queries(
        checkpoints.load(best / "retriever"), [query.text for query in queries.values()]
    )
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)
    assert (tmp_path / "vectors.ids.txt").read_text().split() == list(queries)
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.npy", "vectors.ids.txt"}


def test_index_then_search(best, data, tmp_path, capsys):
    files = {"passages": data / "para.txt", "titles": data / "para.title.txt"}
    run("index", *words(checkpoint=best / "retriever", output=tmp_path / "index", **files))
    assert capsys.readouterr().out == f"60 passages indexed in {tmp_path}/index\n"
    assert VectorIndex.load(tmp_path / "index").ids == list(COLLECTION.passages)
    query = "where is the red dog ?"
    run("search", "--checkpoint", best / "retriever", "--index", tmp_path / "index", "--k", 2, query)
    out = capsys.readouterr().out
    index = retrieval.CorpusIndex(checkpoints.load(best / "retriever"), COLLECTION.passages, progress="")
    hits = index.search({"1": rocketqa_paddle.records.Query("1", query)}, 2)["1"]
    shown = [COLLECTION.passages[hit.passage_id] for hit in hits]
    assert out == (
        f"\n{query}\n"
        f"  1. {shown[0].title or shown[0].id}  ({hits[0].score:.2f})\n     {shown[0].text}\n"
        f"  2. {shown[1].title or shown[1].id}  ({hits[1].score:.2f})\n     {shown[1].text}\n"
    )


def test_search_in_the_best_folder_of_a_run(best, capsys):
    run("search", "--checkpoint", best, "--k", 3, "red dog", "1969", "null", "{a: b}", "-0.5 apples")
    out = capsys.readouterr().out
    asked = ["red dog", "1969", "null", "{a: b}", "-0.5 apples"]
    assert [block.split("\n")[0] for block in out.strip().split("\n\n")] == asked
    numbers = re.findall(r"^ +(\d+)\. .+ \((-?\d+\.\d\d)\)$", out, flags=re.MULTILINE)
    assert [int(rank) for rank, _ in numbers] == [1, 2, 3] * 5
    scores = np.array([float(score) for _, score in numbers]).reshape(5, 3)
    assert (np.diff(scores) <= 0).all()


def test_search_with_a_file_of_queries(best, data, tmp_path, capsys):
    output = tmp_path / "deep" / "dev.run"
    flags = words(checkpoint=best, queries=data / "dev.query.txt", output=output, k=4, depth=9)
    run("search", *flags)
    assert capsys.readouterr().out == f"10 queries answered in {output}\n"
    found = formats.read_run(output)
    queries, passages = COLLECTION.splits["dev"].queries, COLLECTION.passages
    index = retrieval.CorpusIndex(checkpoints.load(best / "retriever"), passages, progress="")
    reranker = checkpoints.load(best / "reranker")
    expected = retrieval.rerank(reranker, index.search(queries, 9), passages, queries, 9, progress="")
    assert list(found) == list(queries)
    for query, hits in found.items():
        assert [hit.passage_id for hit in hits] == [hit.passage_id for hit in expected[query][:4]]


def test_search_gives_k_passages_where_k_is_above_the_depth(best, capsys):
    run("search", "--checkpoint", best, "--k", 12, "--depth", 5, "red dog")
    out = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+\. ", out, flags=re.MULTILINE)) == 12


def test_search_to_depth_0_is_by_the_retriever_alone(best, data, tmp_path):
    files = {"queries": data / "dev.query.txt", "k": 9}
    run("search", *words(checkpoint=best, output=tmp_path / "run", depth=0, **files))
    alone = words(checkpoint=best / "retriever", index=best / "index", output=tmp_path / "alone", **files)
    run("search", *alone)
    assert (tmp_path / "run").read_text() == (tmp_path / "alone").read_text()
    run("search", *words(checkpoint=best, output=tmp_path / "run", depth=9, **files))
    assert (tmp_path / "run").read_text() != (tmp_path / "alone").read_text()


def test_long_passages_are_cut_at_a_word(tmp_path):
    assert cli._short("word " * 100).endswith("word…")
    assert len(cli._short("word " * 100)) <= 160
    assert cli._short("short") == "short"
    assert len(cli._short("x" * 500)) <= 160


def test_rerank(best, data, a_run, tmp_path, capsys):
    flags = words(
        checkpoint=best / "reranker",
        run=a_run,
        queries=data / "dev.query.txt",
        passages=data / "para.txt",
        titles=data / "para.title.txt",
        output=tmp_path / "reranked.run",
        depth=6,
    )
    run("rerank", *flags)
    assert capsys.readouterr().out == f"10 queries re-ranked in {tmp_path}/reranked.run\n"
    queries, passages = COLLECTION.splits["dev"].queries, COLLECTION.passages
    expected = retrieval.rerank(
        checkpoints.load(best / "reranker"), formats.read_run(a_run), passages, queries, 6, progress=""
    )
    found = formats.read_run(tmp_path / "reranked.run")
    for query, hits in found.items():
        scored = expected[query][:6]  # what is below has no score
        assert [hit.passage_id for hit in hits] == [hit.passage_id for hit in scored]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in scored], abs=1e-4)


def test_evaluate(data, a_run, tmp_path, capsys):
    qrels = data / "qrels.dev.tsv"
    run("evaluate", "--qrels", qrels, "--run", a_run)
    values = metrics.evaluate(
        COLLECTION.splits["dev"].qrels, formats.read_run(a_run), ["RR@10", "Success@5", "Success@50"]
    )
    out = capsys.readouterr().out
    assert out.startswith(f"10 queries of {qrels}\n\n| system ")
    assert [float(cell) for cell in re.findall(r"\*\*(\d\.\d+)\*\*", out)] == pytest.approx(
        list(values.values()), abs=6e-4
    )
    assert "t-test" not in out

    perfect = tmp_path / "perfect.trec"
    formats.write_trec_run(
        perfect,
        {
            q: retrieval.to_hits(q, iter([(p, 1.0) for p in judged]))
            for q, judged in COLLECTION.splits["dev"].qrels.items()
        },
    )
    second = tmp_path / "second.run"  # the judged passages behind one that is not: worse by a known amount
    formats.write_run_tsv(
        second,
        {
            q: retrieval.to_hits(
                q,
                iter(
                    [
                        (next(p for p in COLLECTION.passages if p not in judged), 2.0),
                        *((p, 1.0) for p in judged),
                    ]
                ),
            )
            for q, judged in COLLECTION.splits["dev"].qrels.items()
        },
    )
    run(
        "evaluate", "--qrels", qrels, "--run", perfect, "--baseline", second, "--measures", "[nDCG@10, RR@10]"
    )
    out = capsys.readouterr().out
    rows = [line.split("|") for line in out.split("\n") if line.startswith("|")]
    assert [cell.strip() for cell in rows[0][1:-1]] == ["system", "nDCG@10", "RR@10 (MRR@10)"]
    assert [row[1].strip() for row in rows[2:]] == [str(second), str(perfect)]
    assert [cell.strip() for cell in rows[3][2:-1]] == ["**1.000**", "**1.000**"]
    assert f"{perfect} against {second}: nDCG@10 +0." in out
    assert "paired t-test over 10 queries" in out


def test_version_and_help_import_no_paddle(tmp_path):
    """In a process of its own: this one has Paddle already."""
    code = f"""
import contextlib, io, sys
from rocketqa_paddle.commands import cli
for command in {["", *COMMANDS]!r}:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            cli.main([*command.split(), "--help"])
        except SystemExit as exit:
            assert exit.code == 0, command
    text = printed.getvalue()
    assert "usage: rocketqa" in text and len(text) > 100, (command, text)
heavy = [name for name in ("paddle", "faiss", "scipy", "ir_measures") if name in sys.modules]
assert not heavy, heavy
print("fine")
"""
    done = toy.run(sys.executable, "-c", code, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    done = toy.run(sys.executable, "-m", "rocketqa_paddle", "--version", cwd=tmp_path)
    assert (done.stdout, done.returncode) == (f"rocketqa_paddle {rocketqa_paddle.__version__}\n", 0)


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit):
        run("train", "rocketqav2", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "Divide scores by this.",
        "Peak learning rate.",
        "Measures by their ir_measures names",
        "Negatives a list (the paper: 127 on MS MARCO",
    ):
        assert sentence in text
    for command in ("encode", "index", "search", "rerank", "evaluate"):
        with pytest.raises(SystemExit):
            run(command, "--help")
        text = capsys.readouterr().out
        for flag in re.findall(r"^  (--[a-z_]+) [A-Z]+(.*)$", text, flags=re.MULTILINE):
            assert flag, (command, flag)
        assert "checkpoint" in text or command == "evaluate"


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    """Exit code, one line, nothing of Paddle's or faiss's own on the screen."""
    done = toy.run(
        sys.executable, "-m", "rocketqa_paddle", "search", "--checkpoint", "none", "x", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().split("\n")) == 1, done.stderr
    assert done.stderr.startswith("rocketqa: none")


# Mistakes -----------------------------------------------------------------------------------------


def train(data, output, **flags) -> list[str]:
    return ["train", "rocketqav2", *toy.flags(**{"data.folder": data, "output": output} | flags)]


def test_an_unknown_key_in_a_config(fails, data, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(f"output: {tmp_path}/run\ndata: {{folder: {data}}}\njoint: {{batchsize: 3}}\n")
    assert "batchsize" in fails("train", "rocketqav2", "--config", config)
    assert "--joint.batchsize" in fails(*train(data, tmp_path / "run"), "--joint.batchsize", 3)
    assert not (tmp_path / "run").exists()


def test_a_config_of_another_type(fails, data, tmp_path):
    message = fails(*train(data, tmp_path / "run", **{"joint.rounds": "two"}))
    assert "joint.rounds" in message
    assert "two" in message
    message = fails(*train(data, tmp_path / "run", **{"retriever.pooling": "max"}))
    assert "cls" in message
    assert "mean" in message


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("joint.batch_size", 0, "batch_size=0, expected at least 1"),
        ("joint.accumulate", 3, "batch_size=2 cannot be split into accumulate=3"),
        ("joint.steps", 0, "steps"),
        ("warmup_retriever.steps", -1, "steps"),
        ("warmup_retriever.queries", -2, "queries"),
        ("joint.queries", 0, "queries"),
        ("joint.rounds", -1, "rounds"),
        ("joint.groups.skip", -3, "skip"),
        ("joint.groups.sources", "[]", "sources"),
        ("warmup_reranker.easy_negatives", 9, "easy"),
        ("warmup_reranker.negatives", 0, "negatives"),
        ("joint.optimizer.learning_rate", -1, "learning_rate"),
        ("joint.optimizer.warmup_share", 1.5, "warmup_share"),
        ("joint.optimizer.clip_norm", 0, "clip_norm"),
        ("retriever.dropout", 1.5, "dropout"),
        ("retriever.temperature", 0, "temperature"),
        ("encode_batch", 0, "encode_batch"),
        ("evaluation.measures", "[]", "measures"),
        ("evaluation.depth", 0, "depth"),
        ("data.max_dev_queries", 0, "max_dev_queries"),
    ],
)
def test_settings_that_make_no_sense(fails, data, tmp_path, monkeypatch, flag, value, message):
    """Told before any work, naming the setting."""

    def refuse(*_, **__):
        raise AssertionError("work began before the mistake was told")

    monkeypatch.setattr(retrieval, "_infer", refuse)
    assert message in fails(*train(data, tmp_path / "run", **{flag: value}))


def test_missing_flags(fails, tmp_path):
    assert "command" in fails()
    assert "checkpoint" in fails("index", "--passages", "x", "--output", "y")
    assert "nonsense" in fails("nonsense")
    message = fails("train", "rocketqav2", "--output", tmp_path)
    assert "data.folder" in message


def test_a_missing_data_folder(fails, tmp_path):
    message = fails(*train(tmp_path / "none", tmp_path / "run"))
    assert message.startswith(f"rocketqa: {tmp_path}/none: expected a collection")


def test_a_judgement_of_an_unknown_passage(fails, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    with (broken / "qrels.dev.tsv").open("a") as file:
        file.write("dev0\tp9999\n")
    message = fails(*train(broken, tmp_path / "run"))
    assert message.startswith(f"rocketqa: {broken}/qrels.dev.tsv:11: passage id 'p9999' is not in")


def test_a_line_that_breaks_the_format(fails, best, tmp_path):
    (tmp_path / "para.txt").write_text("p1\tfine\np2 no tab\n")
    message = fails(
        "index", *words(checkpoint=best / "retriever", passages=tmp_path / "para.txt", output="x")
    )
    assert f"{tmp_path}/para.txt:2: " in message


def test_start_weights_that_are_not_there(fails, data, tmp_path):
    message = fails(*train(data, tmp_path / "run", **{"retriever.start": "package:no_such_package/model"}))
    assert "no_such_package is not installed" in message
    assert "tiny" in fails(*train(data, tmp_path / "run2", **{"retriever.start": "runs/typo"}))


def test_the_index_of_another_model(fails, best, tmp_path):
    import paddle

    paddle.seed(54321)  # other weights than those any run began with
    tokens = toy.tokenizer(tmp_path / "vocabulary")
    checkpoints.save(toy.dual(tokens), tmp_path / "other")
    message = fails("search", "--checkpoint", tmp_path / "other", "--index", best / "index", "red dog")
    assert "made by model" in message
    assert "search with the checkpoint that built the index" in message


def test_the_wrong_kind_of_checkpoint(fails, best, data, a_run, tmp_path):
    files = {"passages": data / "para.txt", "output": tmp_path / "x"}
    queries = {"queries": data / "dev.query.txt"}
    for line in (
        ["encode", *words(checkpoint=best / "reranker", input=data / "para.txt", output=tmp_path / "x")],
        ["index", *words(checkpoint=best / "reranker", **files)],
    ):
        assert "reranker is a cross_encoder, expected a dual_encoder" in fails(*line)
    line = ["rerank", *words(checkpoint=best / "retriever", run=a_run, **queries, **files)]
    assert "retriever is a dual_encoder, expected a cross_encoder" in fails(*line)
    line = ["search", "--checkpoint", best, "--reranker", best / "retriever", "red dog"]
    assert "retriever is a dual_encoder, expected a cross_encoder" in fails(*line)


def test_a_checkpoint_that_is_not_there_or_broken(fails, best, data, tmp_path):
    files = words(passages=data / "para.txt", output=tmp_path / "x")
    assert f"{tmp_path}/none" in fails("index", "--checkpoint", tmp_path / "none", *files)
    shutil.copytree(best / "retriever", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cut" in fails("index", "--checkpoint", tmp_path / "cut", *files)
    weights.unlink()
    assert "model.safetensors" in fails("index", "--checkpoint", tmp_path / "cut", *files)


def test_a_broken_index(fails, best, tmp_path):
    broken = tmp_path / "best"
    shutil.copytree(best, broken)
    (broken / "index" / "ids.txt").write_text("p1\n")
    assert "build the index again" in fails("search", "--checkpoint", broken, "red dog")
    (broken / "index" / "index.faiss").write_bytes(b"junk")
    assert "index" in fails("search", "--checkpoint", broken, "red dog")
    (broken / "index" / "meta.json").write_text("{")
    assert "meta.json" in fails("search", "--checkpoint", broken, "red dog")
    shutil.rmtree(broken / "index")
    assert "meta.json: not there" in fails("search", "--checkpoint", broken, "red dog")


@pytest.mark.parametrize("query", ["", "  ", "\t"])
def test_an_empty_query(fails, best, query):
    assert "an empty query" in fails("search", "--checkpoint", best, "red dog", query)


def test_words_and_a_file_or_neither(fails, best, data, tmp_path):
    file = words(queries=data / "dev.query.txt", output=tmp_path / "run")
    message = "search needs either queries as words or --queries FILE"
    assert message in fails("search", "--checkpoint", best, "red dog", *file)
    assert message in fails("search", "--checkpoint", best)
    assert "--queries needs --output" in fails("search", "--checkpoint", best, *file[:2])


def test_search_without_an_index(fails, best):
    message = fails("search", "--checkpoint", best / "retriever", "red dog")
    assert "name the index with --index" in message


@pytest.mark.parametrize(("flag", "value"), [("k", 0), ("k", -1), ("depth", -1), ("depth", -3)])
def test_a_number_of_passages_that_makes_no_sense(fails, best, flag, value):
    assert flag in fails("search", "--checkpoint", best, f"--{flag}", value, "red dog")


@pytest.mark.parametrize("value", [0, -2])
def test_a_batch_size_that_makes_no_sense(fails, best, data, tmp_path, value):
    flags = words(
        checkpoint=best / "retriever", input=data / "para.txt", output=tmp_path / "x", batch_size=value
    )
    assert "batch_size" in fails("encode", *flags)


def test_an_empty_file(fails, best, tmp_path):
    (tmp_path / "empty").write_text("")
    flags = words(checkpoint=best / "retriever", passages=tmp_path / "empty", output=tmp_path / "x")
    assert "empty file, expected one passage a line" in fails("index", *flags)
    flags = words(checkpoint=best, queries=tmp_path / "empty", output=tmp_path / "x")
    assert "empty file, expected one query a line" in fails("search", *flags)


def test_an_id_that_stands_twice(fails, best, data, a_run, tmp_path):
    """Else one of the two would vanish without a word."""
    (tmp_path / "para.txt").write_text("p1\tfirst\np2\tother\np1\tsecond\n")
    (tmp_path / "query.txt").write_text("q1\tfirst\nq1\tsecond\n")
    flags = words(checkpoint=best / "retriever", passages=tmp_path / "para.txt", output=tmp_path / "x")
    assert "p1" in fails("index", *flags)
    flags = words(checkpoint=best, queries=tmp_path / "query.txt", output=tmp_path / "x")
    assert "q1" in fails("search", *flags)


def test_rerank_with_ids_that_are_not_there(fails, best, data, a_run, tmp_path):
    (tmp_path / "few.txt").write_text("p1\tfirst\n")
    common = {"checkpoint": best / "reranker", "run": a_run, "output": tmp_path / "x"}
    message = fails("rerank", *words(**common, queries=data / "dev.query.txt", passages=tmp_path / "few.txt"))
    assert re.search(r"dev\.run: \d+ ids are not in .*few\.txt, for example 'p", message)
    message = fails("rerank", *words(**common, queries=tmp_path / "few.txt", passages=data / "para.txt"))
    assert "10 ids are not in" in message


@pytest.mark.parametrize("measure", ["MRR10", "RBP@10", "ERR@10.5"])
def test_an_unknown_measure(fails, data, a_run, measure):
    flags = words(qrels=data / "qrels.dev.tsv", run=a_run, measures=f"[{measure}]")
    assert measure in fails("evaluate", *flags)


def test_no_measure_at_all(fails, data, a_run):
    flags = words(qrels=data / "qrels.dev.tsv", run=a_run, baseline=a_run, measures="[]")
    assert "measure" in fails("evaluate", *flags)


def test_a_run_that_does_not_belong_to_the_judgements(fails, data, tmp_path):
    """All ids unknown: 0.000 in every column would look like a result."""
    (tmp_path / "other.run").write_text("x1\tp1\t1\t0.5\n")
    flags = words(qrels=data / "qrels.dev.tsv", run=tmp_path / "other.run")
    assert "other.run" in fails("evaluate", *flags)


def test_a_gpu_that_is_not_there(fails, best, data, tmp_path):
    flags = words(
        checkpoint=best / "retriever", input=data / "para.txt", output=tmp_path / "x", use_cuda="true"
    )
    import paddle

    if paddle.is_compiled_with_cuda():
        pytest.skip("this Paddle is built for GPUs")
    assert "this Paddle is built for CPU" in fails("encode", *flags)


def test_a_file_where_a_folder_should_be_and_the_reverse(fails, best, data, tmp_path):
    (tmp_path / "file").write_text("x")
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt")
    assert "file" in fails("index", *flags, "--output", tmp_path / "file" / "index")
    assert "folder" in fails(
        "index", *words(checkpoint=best / "retriever", passages=data, output=tmp_path / "x")
    )
    assert "file" in fails(*train(data, tmp_path / "file"))


def test_index_does_not_delete_a_folder_that_is_no_index(fails, best, data, tmp_path):
    """A slip such as `--output runs` must not cost the runs."""
    precious = tmp_path / "runs"
    precious.mkdir()
    (precious / "thesis.txt").write_text("three years")
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt", output=precious)
    message = fails("index", *flags)
    assert "runs" in message
    assert (precious / "thesis.txt").read_text() == "three years"


# Models of other makers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A retriever and a re-ranker in every format, made by the command."""
    folder = tmp_path_factory.mktemp("models")
    tokens = toy.tokenizer(folder / "vocabulary")
    checkpoints.save(toy.dual(tokens, shared=False), folder / "native" / "retriever")
    checkpoints.save(toy.cross(tokens, head="classes"), folder / "native" / "reranker")
    for to in ("reference", "huggingface", "paddlenlp"):
        for name in ("retriever", "reranker"):
            run("convert", folder / "native" / name, folder / to / name, "--to", to)
    return folder


def test_convert_tells_the_largest_difference_and_what_to_know(foreign, tmp_path, capsys):
    run("convert", foreign / "native" / "retriever", tmp_path / "out", "--to", "huggingface")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path}/out: dual encoder, written as huggingface"
    assert out[1] == "largest difference on 4 sample texts: 0"
    assert out[2:] == [
        "note: two towers: the folders query and passage are a model each",
        "note: a passage is a pair there: its title, which may be empty, and its text",
    ]
    run("convert", tmp_path / "out", tmp_path / "back")
    assert capsys.readouterr().out.startswith(
        f"{tmp_path}/back: dual encoder, written as native\nlargest diff"
    )
    digests = {
        checkpoints.load(path).digest() for path in (tmp_path / "back", foreign / "native" / "retriever")
    }
    assert len(digests) == 1


def test_convert_fails_where_the_numbers_differ(foreign, fails, tmp_path, monkeypatch):
    from rocketqa_paddle.checkpoints import convert

    read = convert.read

    def damaged(source):
        checkpoint = read(source)
        if str(source).endswith("out"):
            weight = checkpoint.network.output.bias
            weight.set_value(weight + paddle.to_tensor([0.0, 0.5]))
        return checkpoint

    monkeypatch.setattr(convert, "read", damaged)
    message = fails("convert", foreign / "native" / "reranker", tmp_path / "out", "--to", "reference")
    assert "read back, its outputs differ by 0.5" in message


def test_convert_leaves_alone_what_it_reads(foreign, fails, tmp_path):
    shutil.copytree(foreign / "reference" / "reranker", tmp_path / "a" / "b")
    before = sorted(path.name for path in (tmp_path / "a").rglob("*"))
    for source in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "config.json"):
        for target in (tmp_path / "a" / "b", tmp_path / "a", tmp_path / "a" / "b" / "new"):
            assert "choose another target" in fails("convert", source, target)
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == before


@pytest.mark.parametrize("to", ["reference", "huggingface", "paddlenlp"])
def test_inspect_tells_the_same_of_every_format(foreign, to, capsys):
    for name in ("retriever", "reranker"):
        told = []
        for format in ("native", to):
            run("inspect", foreign / format / name)
            lines = capsys.readouterr().out.splitlines()
            assert lines[0].split() == [
                "path",
                str(foreign / format / name) + "/config.json" * (format == "reference"),
            ]
            assert lines[1].split() == ["format", format]
            told.append(lines[2:])
        assert told[0] == told[1]
        assert re.fullmatch(r"digest +[0-9a-f]{16}", told[0][-1])
        assert any(line.startswith("parameters") for line in told[0])


@pytest.mark.parametrize("to", ["reference", "huggingface", "paddlenlp"])
def test_every_command_takes_models_of_other_makers(foreign, to, data, a_run, tmp_path, capsys):
    files = {"passages": data / "para.txt", "titles": data / "para.title.txt"}
    queries = data / "dev.query.txt"
    for format in ("native", to):
        out, models = tmp_path / format, foreign / format
        run("index", *words(checkpoint=models / "retriever", output=out / "index", **files))
        run(
            "encode", *words(checkpoint=models / "retriever", input=queries, kind="queries", output=out / "q")
        )
        flags = {"checkpoint": models / "retriever", "index": out / "index", "reranker": models / "reranker"}
        run("search", *words(**flags, queries=queries, output=out / "found.run"))
        flags = {"checkpoint": models / "reranker", "run": a_run, "queries": queries, **files}
        run("rerank", *words(**flags, output=out / "reranked.run"))
    for name in ("found.run", "reranked.run"):
        assert (tmp_path / to / name).read_text() == (tmp_path / "native" / name).read_text()
    np.testing.assert_array_equal(np.load(tmp_path / to / "q.npy"), np.load(tmp_path / "native" / "q.npy"))


def test_an_index_of_one_format_is_searched_by_the_same_model_in_another(foreign, data, tmp_path, capsys):
    retriever = foreign / "reference" / "retriever" / "config.json"
    run("index", *words(checkpoint=retriever, passages=data / "para.txt", output=tmp_path / "index"))
    run(
        "search",
        "--checkpoint",
        foreign / "huggingface" / "retriever",
        "--index",
        tmp_path / "index",
        "red dog",
    )
    assert "  5. " in capsys.readouterr().out


def test_convert_refuses_what_a_format_cannot_express(fails, best, tmp_path):
    message = fails("convert", best / "retriever", tmp_path / "out", "--to", "reference")
    first, *problems = message.split("\n")
    assert first == "rocketqa: the RocketQA toolkit cannot express this model:"
    assert problems == ["  pooling='mean', expected 'cls'"]
    assert not (tmp_path / "out").exists()


def test_bm25s_does_not_tell_how_it_goes_about_its_work(caplog):
    cli.main(["models"])
    logging.getLogger("bm25s").setLevel(logging.DEBUG)  # as the library does when it is first imported
    with caplog.at_level(logging.DEBUG):
        made = toy.collection()
        assert retrieval.bm25(made.passages, made.splits["dev"].queries, 5)
    assert [record for record in caplog.records if record.name == "bm25s"] == []


def test_models_lists_the_published_ones(capsys, monkeypatch, tmp_path):
    (tmp_path / "v1_nq_ce").mkdir()
    (tmp_path / "v1_nq_ce" / "config.json").touch()
    monkeypatch.setenv("ROCKETQA_HOME", str(tmp_path))
    run("models")
    head, *rows, blank, where = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == rocketqa_paddle.available_models()
    assert [row.split()[0] for row in rows if "  yes  " in row] == ["v1_nq_ce"]
    assert head.split()[:2] == ["name", "kind"]
    assert where == f"kept in {tmp_path}"


def test_a_model_that_is_not_there(fails, tmp_path):
    assert "did you mean v1_marco_de?" in fails("inspect", "v1_marko_de")
    assert "no model there" in fails("inspect", tmp_path)
