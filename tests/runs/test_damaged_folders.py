"""A file of a run folder is not as it was written: the run says which, what is wrong, what to remove."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import running


def told(settings, folder: Path, file: str, content: bytes | str, of: str = "") -> str:
    """Write a file into a copy of a run, and return what going on is refused with, about it or another."""
    copy = running.copied(settings, folder)
    path = Path(copy.output) / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        running.train(copy)
    message, path = str(error.value), Path(copy.output) / (of or file)
    assert message.startswith(str(path)), message
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("warm-up/step.json", "[]", ": expected a JSON object, found a list: remove "),
        ("warm-up/step.json", '{"retriever": []}', ": retriever is [], expected an object or null: remove "),
        (
            "warm-up/step.json",
            '{"retriever": {"processes": 1}}',
            ": retriever: 'made_of' is missing",
        ),
        ("best/steps.json", '{"retriever": {"step": "x"}}', ": retriever: 'fingerprint' is missing: remove "),
        (
            "config.yaml",
            b"\x00\xff\x01",
            ":1: byte 0xff is not UTF-8, so it is no YAML file: remove ",
        ),
        ("config.yaml", "", ": expected lines of NAME: VALUE, found nothing: remove this file"),
        ("metrics.jsonl", "{}\n", ":1: 'time' is missing: remove this line"),
    ],
)
def test_a_damaged_record(stopped, tmp_path, file, content, message):
    assert message in told(stopped, tmp_path / "run", file, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 999}, ": step 999, expected 0 to 4: remove "),
        ({"step": -1}, ": step -1, expected 0 to 4: remove "),
        ({"step": "2"}, ": step is '2', expected a whole number: remove "),
        ({"total_steps": None}, ": total_steps is None, expected a whole number: remove "),
    ],
)
def test_a_damaged_state(stopped, tmp_path, change, message):
    state = json.loads(running.text(stopped, "last/state.json"))
    assert message in told(stopped, tmp_path / "run", "last/state.json", json.dumps(state | change))


def test_a_run_of_hits_with_another_id_or_cut_off(stopped, tmp_path):
    file = "round-001/hits.train.round-002.npy"
    whole = (Path(stopped.output) / file).read_bytes()
    for number, content in enumerate((whole[:-8] + bytes(8), whole[: len(whole) // 2])):
        message = told(stopped, tmp_path / str(number), file, content)
        assert message == ": cut off or changed since it was written: remove it, to make it again"
    queries = file.replace(".npy", ".queries.txt")
    ids = running.text(stopped, queries)
    message = told(stopped, tmp_path / "ids", queries, ids.replace(ids.split()[0], "unknown", 1), of=file)
    assert message == ": the ids of its queries are not those that were written: remove it, to make it again"


def test_best_with_models_of_no_kind_is_made_again(finished, tmp_path):
    settings = running.copied(finished, tmp_path / "run")
    path = tmp_path / "run" / "best" / "steps.json"
    before = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"retriever"', '"unknown"'))
    running.train(settings)
    assert json.loads(path.read_text()) == before
