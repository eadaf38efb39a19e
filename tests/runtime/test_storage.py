"""Files and folders that are whole or not there, locks that end with their process, and fingerprints."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from kills import killed_at

from rocketqa_paddle.runtime import storage
from rocketqa_paddle.runtime.storage import NotWritten, atomic, fingerprint, locked


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
    path, died = tmp_path / "file.txt", True
    for change in itertools.count():
        path.write_text("old")
        died = killed_at(change, lambda: storage.write_text(path, "half of a longer text"))
        assert path.read_text() in ("old", "half of a longer text")
        storage.write_text(path, "whole")
        assert path.read_text() == "whole"
        assert names(tmp_path) == ["file.txt"]
        if not died:
            break
    assert change > 3


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(NotWritten, match=r"file\.txt: could not be written \(No such file"):  # noqa: SIM117
        with atomic(tmp_path / "file.txt"):
            pass
    assert names(tmp_path) == []


LIMITED = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from rocketqa_paddle.runtime import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
array = np.zeros(1000, dtype=np.float32)
def numpys(path):
    with storage.atomic(path) as new:
        storage.save_array(new, array)
ways = {
    "text": lambda path: storage.write_text(path, "x" * 2000),
    "arrays": lambda path: storage.write_arrays(path, {"a": array}),
    "numpy": numpys,
}
for name, write in ways.items():
    try:
        write(Path(name))
    except storage.NotWritten as error:
        print(error)
"""


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for a full disk."""
    done = toy.run(sys.executable, "-c", LIMITED, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines] == ["text", "arrays", "numpy"], done.stderr
    for line in lines:
        assert "could not be written (" in line
        assert line.endswith(
            "write elsewhere, or make room if the disk is full, and give the same command again"
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float32), np.arange(12).reshape(3, 4).T], ids=str)
def test_arrays_are_numpys(tmp_path, array):
    storage.save_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_files_have_the_mode_that_the_umask_asks_for(tmp_path):
    before = os.umask(0o022)
    try:
        storage.write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(3, dtype=np.float32)})
        storage.write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_two_writers_of_one_file_take_turns(tmp_path):
    path, entered = tmp_path / "file.txt", threading.Event()

    def second() -> None:
        entered.set()
        with atomic(path) as new:
            new.write_text("second")

    with atomic(path) as new:
        other = threading.Thread(target=second)
        other.start()
        entered.wait()
        new.write_text("first")
    other.join()
    assert path.read_text() == "second"
    assert names(tmp_path) == ["file.txt"]


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


# Locks --------------------------------------------------------------------------------------------

HOLD = "import sys; from rocketqa_paddle.runtime.storage import locked; from pathlib import Path\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "run"
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
        with pytest.raises(ValueError, match="run: another process is at work here: wait for it, or stop it"):  # noqa: SIM117
            with locked(path):
                pass
    finally:
        process.kill()
        process.wait()
    with locked(path, wait=True), locked(path):  # the thread that has it may ask again
        assert names(tmp_path) == [".run.rocketqa-lock"]
    assert names(tmp_path) == []


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
