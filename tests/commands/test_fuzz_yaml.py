"""Damaged settings files: they are read, or one message names the file."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import pytest
import toy
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import changed, damaged

from rocketqa_paddle.commands import cli
from rocketqa_paddle.settings import RunSettings

CONFIGS = sorted((toy.ROOT / "rocketqa_paddle" / "presets").glob("*.yaml"))
FUZZ = {"suppress_health_check": list(HealthCheck), "deadline": None, "phases": (Phase.generate,)}
"""Failures are not made smaller, which would take minutes."""


def command(config: Path) -> list[str]:
    """The command that reads an example."""
    name = config.name.partition("-")[0]
    return ["compare"] if name == "compare" else ["train", name]


def check(data: st.DataObject, folder: Path) -> None:
    """Damage an example, and read it."""
    config = data.draw(st.sampled_from(CONFIGS))
    content = config.read_bytes()
    if data.draw(st.booleans()):
        value = data.draw(changed(yaml.safe_load(content)))
        content = yaml.safe_dump(value, sort_keys=False, allow_unicode=data.draw(st.booleans())).encode()
    else:
        content = data.draw(damaged(content))
    file = folder / config.name
    file.write_bytes(content)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            call = cli.parse([*command(config), "--config", str(file)])
    except SystemExit as exit:
        assert exit.code == 2
        assert "error: " in told.getvalue()
        assert len(told.getvalue()) < 2500
    except (ValueError, OSError) as error:
        assert len(str(error)) < 2000
        assert str(file) in str(error), str(error)
    else:
        read = next(value for value in call.args if isinstance(value, RunSettings))
        assert dataclasses.replace(read) == read


@settings(max_examples=25, **FUZZ)
@given(st.data())
def test_a_damaged_example(tmp_path_factory, data):
    check(data, tmp_path_factory.getbasetemp())


@pytest.mark.fuzz
@settings(max_examples=1000, derandomize=False, **FUZZ)
@given(st.data())
def test_many_damaged_examples(tmp_path_factory, data):
    check(data, tmp_path_factory.getbasetemp())
