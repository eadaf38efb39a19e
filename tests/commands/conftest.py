"""What the tests of commands share: a run, models in every format, commands that fail."""

from __future__ import annotations

import paddle
import pytest
import toy
from command_line import COLLECTION, run

from rocketqa_paddle import checkpoints
from rocketqa_paddle.data.runs import write_run
from rocketqa_paddle.search import retrieval


@pytest.fixture(scope="session")
def a_run(best, tmp_path_factory):
    """A run of the dev queries, 10 passages each."""
    retriever = checkpoints.load(best / "retriever")
    index = retrieval.CorpusIndex(retriever, COLLECTION.passages, progress="")
    path = tmp_path_factory.mktemp("runs") / "dev.run"
    write_run(path, index.search(COLLECTION.splits["dev"].queries, 10))
    return path


@pytest.fixture
def fails(capsys):
    """Run a command that must exit 2, and return the message that it prints to stderr."""

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


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """A retriever and a re-ranker in every format, made by `rocketqa convert`."""
    paddle.seed(1)
    folder = tmp_path_factory.mktemp("models")
    tokens = toy.tokenizer(folder / "vocabulary")
    checkpoints.save(toy.dual(tokens, shared=False), folder / "native" / "retriever")
    checkpoints.save(toy.cross(tokens, head="classes"), folder / "native" / "reranker")
    for to in ("reference", "huggingface", "paddlenlp"):
        for name in ("retriever", "reranker"):
            run("convert", folder / "native" / name, folder / to / name, "--to", to)
    return folder
