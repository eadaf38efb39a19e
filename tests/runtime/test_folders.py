"""Folders are whole or not there, whenever a process dies, and nothing else is ever replaced."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from kills import killed_at

from rocketqa_paddle.runtime.folders import Contents, remove, replacing, tidy, whole
from rocketqa_paddle.runtime.storage import NotWritten, hidden, locked, read_json, write_json

MARKER = "meta.json"
KIND = Contents("toy", (MARKER, "more/*"), (MARKER,), lambda values: "text" in values)


def fill(folder: Path, text: str) -> None:
    with replacing(folder, KIND) as new:
        write_json(new / MARKER, {"text": text})
        (new / "more").mkdir()
        for part in "abc":
            (new / "more" / part).write_text(text)


def read(folder: Path) -> str | None:
    """The text of a whole folder; None if there is none."""
    folder = whole(folder)
    if not folder.exists():
        return None
    [text] = {(folder / "more" / part).read_text() for part in "abc"} | {read_json(folder / MARKER)["text"]}
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "a" / "folder"
    fill(folder, "first")
    with replacing(folder, KIND) as new:
        write_json(new / MARKER, {"text": "second"})
        assert read(folder) == "first"
    assert names(folder) == [MARKER]  # nothing of the first is left
    assert names(folder.parent) == ["folder"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = tmp_path / "folder"
    fill(folder, "old")
    with pytest.raises(MemoryError), replacing(folder, KIND) as new:
        (new / MARKER).write_text("half")
        raise MemoryError
    with pytest.raises(NotWritten, match="folder: could not be written"), replacing(folder, KIND) as new:
        raise OSError("48000 requested and 25568 written")
    assert read(folder) == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("lies_there", "problem"),
    [
        ({"": "mine"}, "folder is a file, but a folder is to be written there: choose another name"),
        ({"thesis.tex": "mine"}, "folder holds thesis.tex, which would be lost: move that away, or choose"),
        ({"sub/": ""}, "folder holds sub, which would be lost"),
        ({MARKER: '{"text": "ours"}', "dev.run": "1 2 1 3"}, "folder holds dev.run, which would be lost"),
        ({MARKER: '{"text": "ours"}', "more/b/notes": "x"}, "holds more/b/notes, which would be lost"),
        (
            {MARKER: '{"title": "mine"}'},
            "holds meta.json, but is no toy that this project wrote, and all of it",
        ),
        ({MARKER: "mine"}, "holds meta.json, but is no toy that this project wrote"),
        ({f"{n}.txt": "mine" for n in range(9)}, "holds 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more, which"),
    ],
    ids=str,
)
def test_nothing_that_we_did_not_write_is_replaced_or_removed(tmp_path, lies_there, problem):
    folder = tmp_path / "folder"
    for name, text in lies_there.items():
        path = folder / name if name else folder
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text)
    before = sorted(path for path in tmp_path.rglob("*"))
    for change in (lambda: fill(folder, "new"), lambda: remove(folder, KIND)):
        with pytest.raises(ValueError, match=problem):
            change()
        assert sorted(path for path in tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder", "new")
    assert read(tmp_path / "folder") == "new"


def test_a_death_at_any_change_leaves_a_whole_folder(tmp_path):
    """The next writer finds one of the two, and leaves nothing else behind."""
    found = set()
    for change in itertools.count():
        folder = tmp_path / str(change) / "folder"
        fill(folder, "old")
        died = killed_at(change, lambda folder=folder: fill(folder, "new"))
        found.add(read(folder))
        fill(folder, "next")
        assert read(folder) == "next"
        assert names(folder.parent) == ["folder"]
        if not died:
            break
    assert change > 10
    assert found == {"old", "new"}


def test_a_death_while_a_folder_is_removed_leaves_all_or_nothing(tmp_path):
    found = set()
    for change in itertools.count():
        folder = tmp_path / str(change) / "folder"
        fill(folder, "old")
        died = killed_at(change, lambda folder=folder: remove(folder, KIND))
        found.add(read(folder))
        tidy(folder.parent)
        assert read(folder) in ("old", None)
        remove(folder, KIND)
        assert names(folder.parent) == []
        if not died:
            break
    assert change > 5
    assert found == {"old", None}


def test_a_death_during_a_clean_up_is_no_harm(tmp_path):
    """A second death while what the first one left is cleaned up."""
    for first, second in itertools.product((9, 12, 15, 18), (0, 1, 2, 4)):
        folder = tmp_path / f"{first}-{second}" / "folder"
        fill(folder, "old")
        killed_at(first, lambda folder=folder: fill(folder, "new"))
        before = read(folder)
        killed_at(second, lambda folder=folder: tidy(folder.parent))
        assert read(folder) == before
        tidy(folder.parent)
        assert read(folder) == before
        assert names(folder.parent) == ["folder"]


def test_tidying_spares_what_others_have(tmp_path):
    for name in (".notes.old", ".folder.new", "a.rocketqa-old"):
        (tmp_path / name).write_text("mine")
    hidden(tmp_path / "deep", "new").mkdir()
    (tmp_path / "run").mkdir()
    hidden(tmp_path / "run" / "report.md", "new").write_text("half")
    hidden(tmp_path / "run" / "index", "lock").touch()
    with locked(tmp_path / "run" / "config.yaml"):
        tidy(tmp_path)
        assert names(tmp_path / "run") == [".config.yaml.rocketqa-lock"]
    assert names(tmp_path) == [".folder.new", ".notes.old", "a.rocketqa-old", "run"]
    assert names(tmp_path / "run") == []
