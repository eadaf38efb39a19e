"""The command line as a whole: help, exit codes, and mistakes that several commands refuse alike."""

from __future__ import annotations

import logging
import re
import sys

import pytest
import toy
from command_line import run, train, words

import rocketqa_paddle
from rocketqa_paddle.commands import cli
from rocketqa_paddle.search.bm25 import bm25


def test_help_imports_no_paddle(tmp_path):
    """In a process of its own: this one has Paddle already."""
    code = f"""
import contextlib, io, sys
from rocketqa_paddle.commands import cli
for command in {["", "train", "train rocketqav2", "compare", *cli.COMMANDS]!r}:
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


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        run("--version")
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"rocketqa_paddle {rocketqa_paddle.__version__}\n"


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


def test_missing_flags(fails, tmp_path):
    assert "command" in fails()
    assert "checkpoint" in fails("index", "--passages", "x", "--output", "y")
    assert "nonsense" in fails("nonsense")
    message = fails("train", "rocketqav2", "--output", tmp_path)
    assert "data.folder" in message


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


def test_a_file_where_a_folder_should_be_and_the_reverse(fails, best, data, tmp_path):
    (tmp_path / "file").write_text("x")
    flags = words(checkpoint=best / "retriever", passages=data / "para.txt")
    assert "file" in fails("index", *flags, "--output", tmp_path / "file" / "index")
    assert "folder" in fails(
        "index", *words(checkpoint=best / "retriever", passages=data, output=tmp_path / "x")
    )
    assert "file" in fails(*train(data, tmp_path / "file"))


def test_bm25s_does_not_tell_how_it_goes_about_its_work(caplog):
    cli.main(["models"])
    logging.getLogger("bm25s").setLevel(logging.DEBUG)  # as the library does when it is first imported
    with caplog.at_level(logging.DEBUG):
        made = toy.collection()
        assert bm25(made.passages, made.splits["dev"].queries, 5)
    assert [record for record in caplog.records if record.name == "bm25s"] == []
