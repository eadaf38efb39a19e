"""`rocketqa models`: the published models."""

from __future__ import annotations

from command_line import run

import rocketqa_paddle


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
