"""Any bytes in any reader: records that can be written and read again, or a short error naming the file."""

from __future__ import annotations

import gzip
import json
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketqa_paddle.data.collections import read_collection, read_unlabelled
from rocketqa_paddle.data.groups import read_groups, write_groups
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import read_run, write_run
from rocketqa_paddle.data.tables import json_list
from rocketqa_paddle.data.texts import load_passages, load_queries
from rocketqa_paddle.records import Group, Hit, Run

LONGEST = 2000  # characters of a message
NASTY = [
    *(b"\t", b"\n", b"\r", b"\r\n", b" ", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc2\x85"),
    *(b"\xe2\x80\xa8", b'"\\ud83d"', b"\\ud83d", b"\\u0000", b"\\t", b"\\n", b"\\ufeff", b"#", b"# "),
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"1e999", b"NaN", b"null", b"true"),
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"a" * 5000, b"\xe8\xb0\x81" * 3000),
    *(b"-1", b"0.5", b"1.0", b"0", b"id\ttext\n", b"query-id\tcorpus-id\tscore\n", b"[]", b"{}", b'""', b"-"),
]  # fmt: skip

# Files as they should be -------------------------------------------------------------------------

TEXTS = "1\ta text\n2\t谁 ?\nx-3\t\ufeffmore\n"
TITLES = "1\tOne\n2\t-\nx-3\t\n"
QRELS = "1\t2\n2\t1\nx-3\tx-3\n"
BEIR_QRELS = "query-id\tcorpus-id\tscore\n1\t2\t1\nx-3\t1\t2\n"
JSON = "".join(json.dumps({"_id": id, "title": "t", "text": f"a {id}"}) + "\n" for id in ("1", 2, "x-3"))
DPR = json.dumps(
    [
        {
            "question": "who ?",
            "positive_ctxs": [{"text": "a", "title": "t", "psg_id": 3}],
            "negative_ctxs": [],
        },
        {
            "question": "谁",
            "positive_ctxs": [{"text": "b"}],
            "hard_negative_ctxs": [{"text": "c", "id": "7"}],
        },
    ]
)
TEVATRON = (
    '{"query_id": "q", "query": "who ?", "positive_passages": [{"docid": 1, "title": "", "text": "a"}], '
)
TEVATRON = f'{TEVATRON}"negative_passages": [{{"docid": "2", "text": "b"}}]}}\n' * 2


@dataclass
class Reader:
    """How a file is read, the files that it needs, of which the first is changed, and what must hold then."""

    read: Callable[[Path], Any]
    files: dict[str, str]
    check: Callable[[Any, Path], None] = lambda found, folder: None


def run_again(run: Run, folder: Path) -> None:
    write_run(folder / "again.tsv", run)
    assert read_run(folder / "again.tsv") == run
    ids = [id for hits in run.values() for hit in hits for id in (hit.query_id, hit.passage_id)]
    if all(id.split() == [id] for id in ids):
        write_run(folder / "again.trec", run, "trec")
        assert read_run(folder / "again.trec") == run


def ids_again(ids: Iterable[str], folder: Path) -> None:
    """Any of the ids may stand in a run."""
    run_again({id: [Hit(id, id, 1, 0.5)] for id in ids}, folder)


def groups_again(groups: list[Group], folder: Path) -> None:
    ranked = [replace(g, other_positives=()) for g in groups if g.labels == (1, *[0] * (len(g.labels) - 1))]
    write_groups(folder / "again.jsonl", ranked, "tevatron")
    assert list(read_groups(folder / "again.jsonl")) == ranked
    for size in {len(group.passages) for group in groups} - {1}:
        if lists := [group for group in groups if len(group.passages) == size and fits_tsv(group)]:
            write_groups(folder / "again.tsv", lists, "list")
            assert list(map(contents, read_groups(folder / "again.tsv", size))) == list(map(contents, lists))


def fits_tsv(group: Group) -> bool:
    query, *others = contents(group)[:-1]
    return not query.startswith("\ufeff") and not any(
        mark in text for mark in "\t\n\r" for text in (query, *others)
    )


def contents(group: Group) -> list[Any]:
    return [group.query.text, *(text for p in group.passages for text in (p.title, p.text)), group.labels]


def collection(path: Path) -> list[str]:
    root = path.parent.parent if path.parent.name == "qrels" else path.parent
    found = [*read_collection(root, ["train"], "skip").passages]
    read_unlabelled(root, "train", "skip")
    try:
        read_collection(root, ["train"])
    except ValueError as error:
        assert str(root) in str(error)
    return found


FOLDER = {"para.txt": TEXTS, "para.title.txt": TITLES, "train.query.txt": TEXTS, "qrels.train.tsv": QRELS}
BEIR = {"corpus.jsonl": JSON, "queries.jsonl": JSON, "qrels/train.tsv": BEIR_QRELS}


def first(name: str, files: dict[str, str]) -> dict[str, str]:
    return {name: files[name], **files}


READERS = {
    "queries": Reader(load_queries, {"q.txt": TEXTS}, ids_again),
    "queries with a header": Reader(load_queries, {"q.tsv": f"qid\tquery\n{TEXTS}"}, ids_again),
    "queries of BEIR": Reader(load_queries, {"queries.jsonl": JSON}, ids_again),
    "passages": Reader(load_passages, {"para.txt": TEXTS}, ids_again),
    "passages of BEIR": Reader(load_passages, {"corpus.jsonl": JSON}, ids_again),
    "titles": Reader(
        lambda path: load_passages(path.with_name("para.txt"), path), {"title.txt": TITLES, "para.txt": TEXTS}
    ),
    "qrels": Reader(load_qrels, {"qrels.tsv": QRELS}, ids_again),
    "qrels of BEIR": Reader(load_qrels, {"qrels.tsv": BEIR_QRELS}, ids_again),
    "qrels of TREC": Reader(load_qrels, {"qrels": "# a comment\n1 0 2 1\n2 0 1 0\nx-3 0 1 2\n"}, ids_again),
    "run": Reader(read_run, {"run.tsv": "1\t2\t1\t0.5\n1\t3\t2\t-1e-3\nq\t2\t0\t7\n"}, run_again),
    "run of TREC": Reader(read_run, {"run.trec": "1 Q0 2 1 0.5 a\n1 Q0 3 2 1 a\nq Q0 2 1 7 a\n"}, run_again),
    "cross": Reader(lambda path: list(read_groups(path)), {"x.tsv": "q\tt\ta\t1\nq\t\tb\t0\n"}, groups_again),
    "dual": Reader(lambda path: list(read_groups(path)), {"x.tsv": "q\tt\ta\t-\tb\t0\n" * 2}, groups_again),
    "list": Reader(
        lambda path: list(read_groups(path, 2)), {"x.tsv": "q\tt\ta\t1\nq\t\tb\t0\n" * 2}, groups_again
    ),
    "dpr": Reader(lambda path: list(read_groups(path)), {"x.json": DPR}, groups_again),
    "tevatron": Reader(lambda path: list(read_groups(path)), {"x.jsonl": TEVATRON}, groups_again),
    "JSON list": Reader(lambda path: list(json_list(path)), {"x.json": DPR}),
    **{name: Reader(collection, first(name, FOLDER), ids_again) for name in FOLDER},
    **{f"{name} of BEIR": Reader(collection, first(name, BEIR), ids_again) for name in BEIR},
}

# What is read ------------------------------------------------------------------------------------


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some bytes replaced, taken away, put in or repeated; perhaps gzipped, and perhaps cut."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 12)))
        middle = draw(st.sampled_from(NASTY) | st.binary(max_size=4) | st.just(content[start:end] * 2))
        content = content[:start] + middle + content[end:]
    if draw(st.integers(0, 9)) == 0:
        content = gzip.compress(content, mtime=0)
        if draw(st.booleans()):
            content = content[: draw(st.integers(0, len(content)))]
    return content


@st.composite
def inputs(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(READERS)))
    valid = next(iter(READERS[name].files.values())).encode()
    return name, draw(
        changed(valid) | st.binary(max_size=80) if draw(st.integers(0, 9)) == 0 else changed(valid)
    )


def look(name: str, content: bytes, folder: Path) -> bool:
    """Read an input, which must be good to write and read again, or refused; return whether it was read."""
    reader, folder = READERS[name], folder / name
    for file, text in reversed(reader.files.items()):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(text.encode())
    path = folder / next(iter(reader.files))
    path.write_bytes(content)
    try:
        found = reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        assert not isinstance(error, UnicodeError), error
        assert str(folder) in str(error), error
        assert len(str(error)) < LONGEST, error
        return False
    reader.check(found, folder)
    return True


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", READERS)
def test_files_as_they_should_be(tmp_path: Path, name: str) -> None:
    assert look(name, next(iter(READERS[name].files.values())).encode(), tmp_path)


@pytest.mark.usefixtures("quiet")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=inputs())
def test_any_bytes_are_read_or_refused(tmp_path: Path, given: tuple[str, bytes]) -> None:
    look(*given, tmp_path)


@dataclass
class Figures:
    """What the long test saw."""

    inputs: int = 0
    read: int = 0
    longest: float = 0.0
    before: int = field(default_factory=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def __str__(self) -> str:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before) // 1024
        return f"{self.inputs} inputs, {self.read} read, longest {self.longest:.2f} s, grown by {grown} MB"


@pytest.mark.fuzz
@pytest.mark.usefixtures("quiet")
def test_twenty_thousand_inputs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures = Figures()

    @settings(max_examples=20_000, suppress_health_check=list(HealthCheck))
    @given(given=inputs())
    def go(given: tuple[str, bytes]) -> None:
        start = time.monotonic()
        figures.read += look(*given, tmp_path)
        figures.inputs += 1
        figures.longest = max(figures.longest, time.monotonic() - start)

    go()
    with capsys.disabled():
        print(f"\nreaders: {figures}")
