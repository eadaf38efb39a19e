"""Files and folders that are whole or not there, locks that end with their process, and fingerprints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketqa_paddle.runtime import storage
from rocketqa_paddle.runtime.storage import atomic, fingerprint, locked, remove, replacing, whole

MARKER = "meta.json"


def fill(folder: Path, text: str) -> None:
    with replacing(folder, MARKER) as new:
        (new / MARKER).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Files --------------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        with atomic(path) as new:
            new.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
        assert names(tmp_path) == ["file.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(MemoryError), atomic(path) as new:
        new.write_text("half")
        raise MemoryError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    path = tmp_path / "file.txt"
    writing = atomic(path)
    leftover = writing.__enter__()
    leftover.write_text("half of a longer text")
    with atomic(path) as new:
        assert new == leftover
        new.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["file.txt"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "file.txt"):
        pass
    assert names(tmp_path) == []


def test_text_objects_and_arrays_come_back(tmp_path):
    storage.write_text(tmp_path / "a.txt", "π\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "π\n"
    storage.write_json(tmp_path / "a.json", {"a": [1, "π"]})
    assert storage.read_json(tmp_path / "a.json") == {"a": [1, "π"]}
    arrays = {"a": np.arange(3, dtype=np.float32), "half": np.ones((2, 2), dtype=np.float16)}
    storage.write_arrays(tmp_path / "a.safetensors", arrays)
    found = storage.read_arrays(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("text", "problem"), [("{", "not JSON"), ("[1]", "expected a JSON object, found a list")]
)
def test_a_wrong_json_file_is_named(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: {problem}"):
        storage.read_json(tmp_path / "a.json")


def test_a_json_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff{}", encoding="utf-8")
    assert storage.read_json(tmp_path / "a.json") == {}


def test_a_file_of_arrays_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    storage.write_arrays(path, {"a": np.ones(9, dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"a\.safetensors: not a whole safetensors file"):
        storage.read_arrays(path)


# Folders ------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "a" / "folder"
    fill(folder, "first")
    with replacing(folder, MARKER) as new:
        (new / MARKER).write_text("second")
        (new / "more").mkdir()
        assert (folder / MARKER).read_text() == "first"
    assert (folder / MARKER).read_text() == "second"
    assert names(folder.parent) == ["folder"]
    fill(folder, "third")
    assert names(folder) == [MARKER]  # nothing of the second is left


def test_an_error_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "folder"
    fill(folder, "old")
    with pytest.raises(MemoryError), replacing(folder, MARKER) as new:
        (new / MARKER).write_text("half")
        raise MemoryError
    assert (whole(folder) / MARKER).read_text() == "old"
    fill(folder, "new")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_of_this_kind_stays(tmp_path, kind):
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("mine")
        problem = "folder is a file, .*: choose another name"
    else:
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
        problem = r"folder holds other files \(and no meta.json\), .*: choose another name"
    with pytest.raises(ValueError, match=problem):
        fill(folder, "new")
    assert (folder if kind == "file" else folder / "thesis.tex").read_text() == "mine"
    assert names(tmp_path) == ["folder"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder", "new")
    assert names(tmp_path / "folder") == [MARKER]


@pytest.mark.parametrize("moment", range(3))
def test_a_crash_at_any_moment_leaves_a_whole_folder(tmp_path, monkeypatch, moment):
    """A crash before the first rename, between the two, and after both."""
    folder, rename, calls = tmp_path / "folder", Path.rename, []
    fill(folder, "old")

    def crashing(self, target):
        if len(calls) == moment:
            raise KeyboardInterrupt
        calls.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing)
        patch.setattr(storage.shutil, "rmtree", lambda path, **_: None if len(calls) < 2 else crash())
        with pytest.raises(KeyboardInterrupt):
            fill(folder, "new")
    assert (whole(folder) / MARKER).read_text() == ("new" if moment == 2 else "old")
    fill(folder, "next")
    assert (whole(folder) / MARKER).read_text() == "next"
    assert names(tmp_path) == ["folder"]


def crash() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("left", [["folder"], [".folder.old"], ["folder", ".folder.old"], []], ids=str)
def test_a_removed_folder_is_not_found_again(tmp_path, left):
    """Whatever names a crash has left it under."""
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / MARKER).write_text(name)
    (tmp_path / "other").mkdir()
    remove(tmp_path / "folder")
    assert not whole(tmp_path / "folder").exists()
    assert names(tmp_path) == ["other"]


def test_a_crash_while_a_folder_is_removed_leaves_no_half_of_it(tmp_path, monkeypatch):
    fill(tmp_path / "folder", "old")
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "rmtree", lambda path, **_: crash() if path.exists() else None)
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / "folder")
    assert not whole(tmp_path / "folder").exists()
    fill(tmp_path / "folder", "new")
    remove(tmp_path / "folder")
    assert names(tmp_path) == []


# Locks --------------------------------------------------------------------------------------------

HOLD = "import sys; from rocketqa_paddle.runtime.storage import locked; from pathlib import Path\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    path.parent.mkdir()
    root = Path(storage.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="run: another run is at work here: wait for it, or stop it"):  # noqa: SIM117
            with locked(path):
                pass
    finally:
        process.kill()
        process.wait()
    with locked(path, wait=True), pytest.raises(ValueError, match="another run"), locked(path):
        pass
    with locked(path):  # it can be had again
        pass


# Fingerprints -------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_in_every_process():
    assert fingerprint(["a", b"b", 3, None, np.arange(3, dtype=np.float32)]) == "1418a98d44baea56"


def test_content_decides():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert fingerprint([a]) == fingerprint([np.asfortranarray(a)]) == fingerprint([a.tobytes()])
    assert fingerprint(["a"]) == fingerprint([b"a"])
    assert fingerprint([b"ab", b"c"]) == fingerprint([b"a", b"bc"])  # parts of a file, for example
    different = [["a"], ["b"], ["a", "b"], ["b", "a"], [1], [1.0], [None], [a], [a + 1]]
    assert len({fingerprint(parts) for parts in different}) == len(different)


@given(st.binary(max_size=100), st.integers(1, 7))
def test_the_fingerprint_of_a_file_is_that_of_its_content(tmp_path_factory, content, block):
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_BLOCK", block)
        assert storage.file_fingerprint(path) == fingerprint([content])
        assert storage.file_fingerprint(str(path)) == fingerprint([content])
