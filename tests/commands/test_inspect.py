"""`rocketqa inspect`: what a model is."""

from __future__ import annotations

import re

import pytest
from command_line import run


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


def test_a_model_that_is_not_there(fails, tmp_path):
    assert "did you mean v1_marco_de?" in fails("inspect", "v1_marko_de")
    assert "no model there" in fails("inspect", tmp_path)
