"""What all data files share: encodings, places of errors, JSON, and writing a file whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import toy
from datafiles import consume, fails, write

from rocketqa_paddle.data import tables
from rocketqa_paddle.data.groups import read_dpr, read_groups, read_tevatron
from rocketqa_paddle.data.places import FormatError
from rocketqa_paddle.data.qrels import load_qrels
from rocketqa_paddle.data.runs import read_run, write_run
from rocketqa_paddle.data.tables import json_list, write_lines
from rocketqa_paddle.data.texts import read_passages, read_queries
from rocketqa_paddle.records import Hit, Query

TWO = [Query("1", "what is a passage ?"), Query("q-2", "谁写了 红楼梦")]
TEXT = "1\twhat is a passage ?\nq-2\t谁写了 红楼梦\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.rstrip("\n").encode(),
        TEXT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode() + b"\n\r\n \t\n",
        gzip.compress(TEXT.encode()),
        gzip.compress(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()),
    ],
    ids=["plain", "no end", "CRLF", "BOM", "empty end", "gzip", "gzip BOM CRLF"],
)
@pytest.mark.parametrize("name", ["q.txt", "q.txt.gz"])
def test_encodings_of_a_file(tmp_path: Path, content: bytes, name: str) -> None:
    """The content tells compression; the name does not."""
    (tmp_path / name).write_bytes(content)
    assert list(read_queries(tmp_path / name)) == TWO
    assert list(read_queries(str(tmp_path / name))) == TWO


def test_nothing_is_trimmed(tmp_path: Path) -> None:
    path = write(tmp_path / "q.txt", "1\t  a\u2028b\x85 \n2\tc\x0cd\re\n")
    assert [query.text for query in read_queries(path)] == ["  a\u2028b\x85 ", "c\x0cd\re"]


def test_readers_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "q.txt", "1\ta\n2\tb\nbroken\n")
    assert [query.id for query in islice(read_queries(path), 2)] == ["1", "2"]


def test_empty_line_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "q.txt", "1\ta\n\n\n2\tb\n")
    with fails(path, 2, "empty line", "remove it"):
        consume(read_queries(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("reader", [read_queries, load_qrels, read_groups, read_run, read_dpr, read_tevatron])
def test_utf16_is_told(tmp_path: Path, encoding: str, reader: Callable) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    path = write(tmp_path / "data", f"{mark}1\t问题\n".encode(encoding))
    with pytest.raises(FormatError, match=r"data: ?.*1: byte 0xf. is not UTF-8; .*iconv -f UTF-16 -t UTF-8"):
        consume(reader(path))


@pytest.mark.parametrize("content", ["问题".encode("gb18030"), "问题".encode("utf-16"), b"\x80"])
def test_bad_utf8_names_the_line(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "q.txt", b"1\ta\n2\t" + content + b"\n")
    with fails(path, 2, "not UTF-8", "iconv"):
        consume(read_queries(path))


@pytest.mark.parametrize("cut", [slice(0, 30), slice(0, -4)])
def test_broken_gzip(tmp_path: Path, cut: slice) -> None:
    path = write(tmp_path / "q.txt", gzip.compress(TEXT.encode() * 10)[cut])
    with pytest.raises(FormatError, match=re.escape(f"{path}: broken gzip file")):
        consume(read_queries(path))
    path = write(tmp_path / "x.json", gzip.compress(json.dumps(["a"] * 100).encode())[cut])
    with pytest.raises(FormatError, match=re.escape(f"{path}: broken gzip file")):
        consume(json_list(write(path, gzip.compress(b"[%s]" % b",".join([b"{}"] * 100))[:-4])))


def test_missing_file_lists_near_names(tmp_path: Path) -> None:
    for name in ("para.title.txt", "para.txt", "zebra"):
        write(tmp_path / name, "")
    with pytest.raises(FileNotFoundError, match=r"para\.text: no such file; the folder has para") as caught:
        consume(read_passages(tmp_path / "para.text"))
    assert "para.txt" in str(caught.value) and "zebra" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file, and no folder"):
        consume(read_passages(tmp_path / "nowhere" / "para.txt"))
    with pytest.raises(FileNotFoundError, match="this is a folder"):
        consume(read_passages(tmp_path))


def test_errors_survive_pickling() -> None:
    assert str(pickle.loads(pickle.dumps(FormatError("a:1: b")))) == "a:1: b"


# JSON lists --------------------------------------------------------------------------------------

ITEMS = [{"text": '什么 ["{ ?', "n": [1, -1.5e-07, 1.0], "a.b": {"item": None}}, {}, {"é\\\n": [True]}]


@pytest.fixture(params=[1, 7, 1 << 16])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("indent", "ascii", "end"), [(None, False, ""), (4, True, "\n\n")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_list(tmp_path: Path, indent: int | None, ascii: bool, end: str, mark: str) -> None:
    """Wherever a block of the file ends, in a literal, a character or an escape."""
    text = mark + json.dumps(ITEMS, indent=indent, ensure_ascii=ascii) + end
    found = list(json_list(write(tmp_path / "x.json", text)))
    assert [place.number for place, _ in found] == [1, 2, 3]
    assert [item for _, item in found] == ITEMS
    assert [type(number) for number in found[0][1]["n"]] == [int, float, float]


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "[\n]"])
def test_empty_json_list(tmp_path: Path, content: str) -> None:
    assert list(json_list(write(tmp_path / "x.json", content))) == []


def test_json_list_streams(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", '[{"a": 1}, {"b": 2}, broken')
    assert [item for _, item in islice(json_list(path), 2)] == [{"a": 1}, {"b": 2}]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "content, place, parts",
    [
        ('{"question": 1}', "not a JSON list, expected a list of objects", [".jsonl"]),
        ("3", "not a JSON list", [".jsonl"]),
        ("", "object 1: ", ["not JSON (parse error: premature EOF)"]),
        ("[\n\n3]", "object 1: ", ["a JSON int, expected a list of objects"]),
        ("[{}, [{}]]", "object 2: ", ["a JSON list, expected a list of objects"]),
        ('[{},\n{"a": "b"\n"c": 1}]', "object 2: ", ["not JSON (parse error: after key and value", "near"]),
        ('[{},\n{"a": "b', "object 2: ", ["not JSON (parse error: premature EOF"]),
        ('[{"a": []}\n', "object 2: ", ["not JSON (parse error: premature EOF"]),
        ('[{"a": []}\n{', "object 2: ", ["not JSON (parse error: after array element, I expect ','"]),
        ("[{},]", "object 2: ", ["not JSON (parse error: unallowed token"]),
        ('[{"a": NaN}]', "object 1: ", ["not JSON (lexical error: invalid char in json text, near"]),
        ("[]\n\n[]", "text after object 0: ", ["not JSON (parse error: trailing garbage"]),
        ("[{}]]", "text after object 1: ", ["not JSON (parse error: trailing garbage"]),
        ('[\n{"a": ' + "1" * 5000 + "}]", "object 1: ", ["not JSON (parse error: integer overflow"]),
        (b'[{},{"a": "\xb4"}]', "object 2: ", ["byte 0xb4 is not UTF-8", "iconv"]),
        (b'[{},{"a": "\xed\xa0\x80"}]', "object 2: ", ["byte 0xed is not UTF-8"]),
        ("[{}]".encode("utf-16"), "object 1: ", ["byte 0xff is not UTF-8"]),
        (b"[]\xc3", "text after object 0: ", ["byte 0xc3 is not UTF-8"]),
    ],
)
def test_json_list_refused(tmp_path: Path, content: str | bytes, place: str, parts: list[str]) -> None:
    path = write(tmp_path / "x.json", content)
    with fails(path, place, *parts):
        consume(json_list(path))


def test_json_list_that_never_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", "[" + '{"a":' * 100_000)
    with fails(path, "object 1: ", "not JSON"):
        consume(json_list(path))


# Writing -----------------------------------------------------------------------------------------

RUN = {"q1": [Hit("q1", "p1", 1, 79.25)]}


def test_written_gzip(tmp_path: Path) -> None:
    write_run(tmp_path / "run.tsv.gz", RUN)
    assert gzip.decompress((tmp_path / "run.tsv.gz").read_bytes()) == b"q1\tp1\t1\t79.25\n"
    assert read_run(tmp_path / "run.tsv.gz") == RUN


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.tsv"
    write_run(path, RUN)
    with pytest.raises(ValueError, match="finite score"):
        write_run(path, {"q": [Hit("q", "p", 1, 1.0), Hit("q", "p2", 2, float("nan"))]})
    assert read_run(path) == RUN
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.tsv"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.tsv").symlink_to(tmp_path / "run.tsv")
    write_run(tmp_path / "link.tsv", RUN)
    assert (tmp_path / "link.tsv").is_symlink()
    assert read_run(tmp_path / "run.tsv") == RUN


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder, expected the name of a file"):
        write_run(tmp_path, RUN)


def test_lines_go_to_what_is_no_file(tmp_path, capfd):
    """Standard output, a device and a named pipe; none of them is replaced by a file."""
    write_lines("/dev/stdout", [("line", "one"), ("line", "two")])
    write_lines("/dev/fd/2", [("line", "three")])
    write_lines("/dev/null", [("line", "four")])
    assert tuple(capfd.readouterr()) == ("one\ntwo\n", "three\n")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_lines(pipe, [("line", "five")])
    assert os.read(reader, 100) == b"five\n"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    with pytest.raises(ValueError, match="a folder, expected the name of a file"):
        write_lines(tmp_path, [])


def test_standard_output_that_is_a_file_is_written_once(tmp_path):
    """What was printed before stays, and what is printed later comes after the lines."""
    code = (
        "import os\nfrom rocketqa_paddle.data.tables import write_lines\n"
        "os.write(1, b'before\\n')\nwrite_lines('/dev/stdout', [('line', 'one')])\nos.write(1, b'after\\n')"
    )
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=toy.ROOT, check=True)
    assert (tmp_path / "out").read_text() == "before\none\nafter\n"
