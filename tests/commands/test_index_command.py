"""`rocketqa index`: what it writes, and what it refuses to read or to replace."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from command_line import COLLECTION, run, words

import rocketqa_paddle
from rocketqa_paddle import checkpoints
from rocketqa_paddle.runtime.storage import locked
from rocketqa_paddle.search import retrieval
from rocketqa_paddle.search.index import VectorIndex


def test_passages_that_the_model_cuts_are_told(best, tmp_path, capsys):
    (tmp_path / "long.txt").write_text(f"1\tred\n2\t{'red ' * 80}\n")
    run("index", *words(checkpoint=best / "retriever", output=tmp_path / "i", passages=tmp_path / "long.txt"))
    told, done = capsys.readouterr().out.splitlines()
    assert told.startswith("50 % of 2 passages are longer than the passage length, 20 tokens, and are cut; ")
    assert told.endswith("95 % of them whole would take more than the encoder's 64 positions")
    assert done == f"2 passages indexed in {tmp_path}/i"


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


def test_an_index_that_loses_its_bm25_is_told(best, data, tmp_path):
    pytest.importorskip("bm25s", reason="needs the extra report")
    flags = {"checkpoint": best / "retriever", "passages": data / "para.txt", "output": tmp_path / "index"}
    run("index", *words(**flags, bm25="true"))
    run("index", *words(**flags, bm25="true"))
    with pytest.warns(UserWarning, match="index has BM25, and the index that replaces it will have none"):
        run("index", *words(**flags))
    run("index", *words(**flags))


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


def test_a_line_that_breaks_the_format(fails, best, tmp_path):
    (tmp_path / "para.txt").write_text("p1\tfine\np2 no tab\n")
    message = fails(
        "index", *words(checkpoint=best / "retriever", passages=tmp_path / "para.txt", output="x")
    )
    assert f"{tmp_path}/para.txt:2: " in message


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


def test_a_checkpoint_that_is_not_there_or_broken(fails, best, data, tmp_path):
    files = words(passages=data / "para.txt", output=tmp_path / "x")
    assert f"{tmp_path}/none" in fails("index", "--checkpoint", tmp_path / "none", *files)
    shutil.copytree(best / "retriever", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cut" in fails("index", "--checkpoint", tmp_path / "cut", *files)
    weights.unlink()
    assert "model.safetensors" in fails("index", "--checkpoint", tmp_path / "cut", *files)


def test_index_does_not_delete_a_folder_that_is_no_index(fails, best, data, tmp_path):
    """A slip such as `--output runs` must not cost the runs."""
    precious = tmp_path / "runs"
    precious.mkdir()
    (precious / "thesis.txt").write_text("three years")
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt", output=precious)
    message = fails("index", *flags)
    assert "runs" in message
    assert (precious / "thesis.txt").read_text() == "three years"
    assert list(tmp_path.iterdir()) == [precious]


@pytest.mark.parametrize("name", ["dev.run", "my_notes.txt", "sub/readme.txt"])
def test_an_index_is_replaced_but_nothing_else_is_lost(
    fails, best, data, tmp_path, monkeypatch, capsys, name
):
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt", output=tmp_path / "index")
    run("index", *flags)
    run("index", *flags)
    capsys.readouterr()
    (tmp_path / "index" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "index" / name).write_text("mine")
    monkeypatch.setattr(retrieval.forward, "encode_parts", None)  # it is refused before any work
    assert f"{tmp_path}/index holds {name}, which would be lost" in fails("index", *flags)
    assert (tmp_path / "index" / name).read_text() == "mine"
    assert len(VectorIndex.load(tmp_path / "index")) == 60


def test_a_meta_json_of_something_else_makes_no_index(fails, best, data, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "meta.json").write_text('{"title": "My site"}')
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt", output=tmp_path / "site")
    assert "site holds meta.json, but is no index that this project wrote" in fails("index", *flags)


def test_two_commands_do_not_write_one_folder(fails, best, data, tmp_path):
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt", output=tmp_path / "index")
    with ThreadPoolExecutor(1) as other:
        lock = locked(tmp_path / "index")
        other.submit(lock.__enter__).result()
        assert "index: another process is at work here: wait for it, or stop it" in fails("index", *flags)
        other.submit(lock.__exit__, None, None, None).result()
    run("index", *flags)
    assert {path.name for path in tmp_path.iterdir()} == {"index"}


# Changes and Milvus --------------------------------------------------------------------------------


@pytest.fixture(params=["faiss", "milvus"])
def place(request, tmp_path) -> dict[str, dict]:
    """The flags of an index for `index` and for `search`."""
    if request.param == "faiss":
        return {"index": {"output": tmp_path / "index"}, "search": {"index": tmp_path / "index"}}
    pytest.importorskip("pymilvus", reason="needs the extra milvus")
    pytest.importorskip("milvus_lite", reason="needs the extra milvus")
    there = {"uri": tmp_path / "index.db", "collection": "toy"}
    return {"index": {"engine": "milvus", **there}, "search": there}


def found(best, place, query, capsys) -> str:
    capsys.readouterr()
    run("search", *words(checkpoint=best / "retriever", k=3, **place["search"]), query)
    return capsys.readouterr().out


def test_passages_are_added_replaced_and_deleted(best, data, place, tmp_path, capsys, fails, monkeypatch):
    titles, model = {"titles": data / "para.title.txt"}, {"checkpoint": best / "retriever"}
    run("index", *words(**model, passages=data / "para.txt", **titles, **place["index"]))
    assert "60 passages indexed in " in capsys.readouterr().out
    run("index", *words(**model, passages=data / "para.txt", **titles, output=tmp_path / "all"))
    query = "where is the red dog ?"
    whole = {"search": {"index": tmp_path / "all"}}
    assert found(best, place, query, capsys) == found(best, whole, query, capsys)

    encode, encoded = retrieval.forward.encode_parts, []
    monkeypatch.setattr(
        retrieval.forward,
        "encode_parts",
        lambda model, parts, count, **how: encoded.append(count) or encode(model, parts, count, **how),
    )
    (tmp_path / "more.txt").write_text(f"p3\t{query}\nnew\tthe green whale\n")
    run("index", *words(**model, passages=tmp_path / "more.txt", **place["index"]), "--update")
    assert "1 passages added and 1 replaced in " in capsys.readouterr().out
    assert encoded == [2]
    assert query in found(best, place, query, capsys)
    (tmp_path / "ids.txt").write_text("p3\nnew\nnobody\n")
    run("index", *words(**place["index"], delete=tmp_path / "ids.txt"))
    assert capsys.readouterr().out.startswith("2 passages deleted in ")
    assert query not in found(best, place, query, capsys).split("\n", 2)[2]
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept <= {"index", "index.db", "all", "more.txt", "ids.txt"}

    other = checkpoints.load(best / "retriever")
    other.lengths["query"] = 11
    checkpoints.save(other, tmp_path / "other")
    flags = words(checkpoint=tmp_path / "other", passages=tmp_path / "more.txt", **place["index"])
    assert "search with the checkpoint that built the index" in fails("index", *flags, "--update")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"passages": "x"}, "index needs --checkpoint, a retriever, and --passages, a file"),
        ({"delete": "ids", "passages": "x"}, "--delete goes without --passages: leave it out"),
        ({"delete": "ids", "update": "true"}, "--delete goes without --update"),
        ({"uri": "x.db"}, "--engine faiss goes without --uri"),
        ({"collection": "x"}, "--engine faiss goes without --collection"),
        ({"engine": "milvus", "uri": "x.db"}, "--engine milvus goes without --output"),
        (
            {"update": "true", "factory": "HNSW8", "checkpoint": "x", "passages": "x"},
            "goes without --factory",
        ),
        ({"update": "true", "vectors": "float16", "checkpoint": "x", "passages": "x"}, "without --vectors"),
    ],
)
def test_flags_that_do_not_go_together(fails, flags, message, tmp_path):
    (tmp_path / "ids").write_text("1\n")
    assert message in fails("index", *words(output=tmp_path / "index", **flags))
    assert not (tmp_path / "index").exists()


def test_milvus_needs_a_place_and_compares_all_vectors(fails):
    assert "--engine milvus needs --uri, a file NAME.db or a server" in fails("index", "--engine", "milvus")
    flags = words(engine="milvus", uri="x.db", factory="HNSW8")
    assert "--engine milvus goes without --factory" in fails("index", *flags)
    assert "index needs --output, the folder of the index" in fails("index", "--update")
