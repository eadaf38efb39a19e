"""Damaged run folders: the run goes on, or one message names the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import running
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import mutated

RECORDS = (
    "*/step.json",
    "metrics.jsonl",
    "config.yaml",
    "best/*.json",
    "*/*.tsv",
    "*/*.npy",
    "corpus/*",
    "last/*",
    "steps.md",
)
"""What a run reads in its folder beside models and the index, which have tests of their own."""


def check(run: running.RunSettings, data: st.DataObject) -> None:
    """Damage a file of a copy of a run, and go on."""
    source = Path(run.output)
    files = sorted(path.relative_to(source) for pattern in RECORDS for path in source.glob(pattern))
    file = data.draw(st.sampled_from(files))
    content = (source / file).read_bytes()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        copy = running.copied(run, Path(folder) / "run")
        path = Path(copy.output) / file
        if data.draw(st.integers(0, 9)) == 0:
            path.unlink()
            if data.draw(st.booleans()):
                path.mkdir()
        else:
            path.write_bytes(data.draw(mutated(file.name, content)))
        try:
            running.train(copy)
        except (ValueError, OSError) as error:
            message = str(error)
            assert len(message) < 2000
            assert file.name in message or str(path.parent) in message, (file, message)
        else:
            assert (Path(copy.output) / "report.md").is_file()


FUZZ = {"suppress_health_check": list(HealthCheck), "deadline": None, "phases": (Phase.generate,)}


@settings(max_examples=25, derandomize=True, **FUZZ)
@given(st.data())
def test_a_damaged_folder_of_a_finished_run(finished, data):
    check(finished, data)


@settings(max_examples=10, derandomize=True, **FUZZ)
@given(st.data())
def test_a_damaged_folder_of_a_stopped_run(stopped, data):
    check(stopped, data)


@pytest.mark.fuzz
@settings(max_examples=1000, derandomize=False, **FUZZ)
@given(st.data())
def test_many_damaged_folders(finished, stopped, data):
    check(data.draw(st.sampled_from([finished, stopped])), data)
