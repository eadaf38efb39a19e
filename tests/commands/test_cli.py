"""The command line as a whole: help, exit codes, and mistakes that several commands refuse alike."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import sys

import pytest
import toy
from command_line import run, train, words

import rocketqa_paddle
from rocketqa_paddle.checkpoints import published
from rocketqa_paddle.commands import cli
from rocketqa_paddle.search.bm25 import bm25


def test_help_imports_no_paddle(tmp_path):
    """In a process of its own: this one has Paddle already."""
    code = f"""
import contextlib, io, sys
from rocketqa_paddle.commands import cli
for command in {["", "train", "train rocketqav2", "compare", "demo", *cli.COMMANDS]!r}:
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
    assert done.stderr.startswith("rocketqa: 'none': no such file or folder")


def test_missing_flags(fails, tmp_path):
    assert "command" in fails()
    assert "checkpoint" in fails("index", "--passages", "x", "--output", "y")
    assert "nonsense" in fails("nonsense")
    message = fails("train", "rocketqav2", "--output", tmp_path)
    assert message == "error: rocketqa train rocketqav2 needs --data.folder\n"
    assert fails("encode", "--input", "x") == "error: rocketqa encode needs --checkpoint, --output\n"
    assert fails("hits", "x") == "error: rocketqa hits needs OUTPUT\n"


def test_the_usage_of_a_command_stands_above_its_mistakes(capsys):
    for line, usage in (
        (["search"], "usage: rocketqa search [QUERY ...] --checkpoint FOLDER [--KEY VALUE ...]\n"),
        (["serve"], "usage: rocketqa serve --checkpoint CHECKPOINT [--KEY VALUE ...]\n"),
        (["train", "ar2"], "usage: rocketqa train ar2 [--config FILE|PRESET]"),
    ):
        with pytest.raises(SystemExit):
            run(*line)
        assert capsys.readouterr().err.startswith(usage)


def test_an_unknown_flag_is_answered_with_similar_ones(fails):
    assert "--prot 80; there are --port, " in fails("serve", "--checkpoint", "x", "--prot", 80)
    assert "; there are --joint.queries, " in fails("train", "rocketqav2", "--joint.qeries", 5)
    assert fails("models", "--zzz").rstrip().endswith("unrecognized arguments: --zzz")


def test_help_of_words_tells_what_they_may_be(capsys):
    for line in (["new", "--help"], ["search", "--help"], ["--help"]):
        with pytest.raises(SystemExit):
            run(*line)
    text = capsys.readouterr().out
    assert "<function" not in text
    assert "search for, or --queries (type: str, default: [])" in " ".join(text.split())
    assert "over HTTP" in text


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


def stopping(patch, owner, name, number):
    """Let a function of the command line send this process a signal when it is called."""
    patch.setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), number))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_request_to_stop_ends_a_command_without_a_traceback(monkeypatch, capfd, number):
    """While arguments are read or Paddle is imported at once, later by an exception; never with code 1."""

    def leave(code):
        raise SystemExit(code)

    before = signal.getsignal(number)
    monkeypatch.setattr(os, "_exit", leave)
    for owner, name in ((cli, "parse"), (cli, "import_paddle"), (published, "is_fetched")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
            stopping(patch, owner, name, number)
            run("models")
        assert exit.value.code == 130, name
        out, err = capfd.readouterr()
        assert (out, err) == ("", "rocketqa: stopped\n")
        assert signal.getsignal(number) is before


def test_a_signal_while_the_command_line_is_imported(tmp_path):
    code = """
import os, signal, sys
from rocketqa_paddle import __main__ as entry
class Finder:
    def find_spec(self, name, *_):
        if name == "jsonargparse":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
entry.main()
"""
    done = toy.run(sys.executable, "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "rocketqa: stopped\n")


def test_output_that_nobody_reads_any_more(tmp_path):
    """As in `rocketqa models | head -0`: quiet, with the code of SIGPIPE."""
    code = """
import os
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
from rocketqa_paddle.commands import cli
cli.main(["models"])
"""
    done = toy.run(sys.executable, "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_output_on_a_full_disk(tmp_path):
    done = toy.run("bash", "-c", f"{sys.executable} -m rocketqa_paddle models > /dev/full", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_terminal_that_is_not_utf8(monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as exit:
        run("inspect", "模型")
    assert exit.value.code == 2
    streams["stderr"].flush()
    assert streams["stderr"].buffer.getvalue().startswith(rb"rocketqa: '\u6a21\u578b'")


def test_a_value_of_megabytes_is_cut(fails, tmp_path):
    long = "x" * 5_000_000
    for line in (
        ["train", "rocketqav2", "--retriever.pooling", long],
        ["train", "rocketqav2", "--joint.steps", long],
        ["inspect", long],
        [long],
    ):
        message = fails(*line)
        assert len(message) < 2000
        assert "characters left out" in message


def test_without_paddle_a_command_tells_the_line_to_install_it(monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "paddle", None)
    for line in (["models"], ["inspect", "x"]):
        message = fails(*line)
        assert message.startswith(
            "rocketqa: PaddlePaddle cannot be imported: pip install 'rocketqa_paddle[cpu]'"
        )
        assert "\n" not in message
    with pytest.raises(SystemExit) as exit:
        run("--version")
    assert exit.value.code == 0


def test_a_tilde_in_a_flag_is_the_home_folder(monkeypatch, fails, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/x.tsv" in fails("evaluate", "--qrels=~/x.tsv", "--run=~/y")
    assert fails("search", "--checkpoint=~/none", "~").startswith(f"rocketqa: '{tmp_path}/none")


@pytest.mark.parametrize("line", [["encode", "--kind", "queries"], ["index"], ["rerank"]])
def test_a_batch_of_nothing(fails, line):
    flags = {"checkpoint": "x", "input": "x", "passages": "x", "queries": "x", "run": "x", "output": "x"}
    wanted = {"encode": {"checkpoint", "input", "output"}, "index": {"checkpoint", "passages", "output"}}
    given = {name: flags[name] for name in wanted.get(line[0], flags.keys() - {"input"})}
    assert fails(*line, *words(**given, batch_size=0)) == "rocketqa: batch_size=0, expected at least 1"


def test_a_warning_is_a_sentence_without_code(data, best, tmp_path):
    """BEIR's empty passages are kept, with a warning."""
    lines = [{"_id": "a", "title": "", "text": ""}, {"_id": "b", "title": "", "text": "the red dog"}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = words(checkpoint=best / "retriever", passages="corpus.jsonl", output="index")
    done = toy.run(sys.executable, "-m", "rocketqa_paddle", "index", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = "rocketqa: corpus.jsonl: 1 of 2 passages have neither title nor text"
    assert [line for line in done.stderr.splitlines() if "neither" in line] == [told]
