"""Folders that are replaced whole or not at all, and what a crash leaves of that.

A folder is filled under a hidden name beside its place. The old folder then makes room for the new one and is
deleted last. A process that is killed at any moment leaves the old folder or the new one whole, and perhaps
hidden folders, which the next writer and `tidy` remove.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rocketqa_paddle.runtime.storage import fsync, hidden, locked, read_json, writing

_HIDDEN = ".*.rocketqa-*"  # the names that `storage.hidden` gives


@dataclass(frozen=True)
class Contents:
    """What this project writes into folders of one kind, so that nothing else is ever replaced.

    `names` are patterns of paths in the folder. A folder is ours if it has nothing but these, and one of the
    JSON files `markers` holds values that `is_ours` accepts.
    """

    noun: str
    names: tuple[str, ...]
    markers: tuple[str, ...]
    is_ours: Callable[[dict[str, Any]], bool] = lambda values: True

    def check(self, folder: str | Path) -> None:
        """Refuse a place where a folder of this kind would replace something that we did not write.

        Raises:
            ValueError: names what would be lost.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ValueError(f"{folder} is a file, but a folder is to be written there: choose another name")
        held = sorted(_leaves(folder)) if folder.is_dir() else []
        if others := [name for name in held if not any(_matches(name, known) for known in self.names)]:
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            raise ValueError(
                f"{folder} holds {', '.join(others[:5])}{more}, which would be lost: "
                "move that away, or choose another name"
            )
        if held and not self.holds(folder):
            raise ValueError(
                f"{folder} holds {', '.join(held[:5])}, but is no {self.noun} that this project wrote, and "
                "all of it would be lost: move it away, or choose another name"
            )

    def holds(self, folder: str | Path) -> bool:
        """Tell whether a folder is one of this kind that we wrote."""
        for marker in self.markers:
            with suppress(OSError, ValueError):
                return self.is_ours(read_json(Path(folder) / marker))
        return False


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a path fits a pattern, in which a star stands for a part of one name."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _leaves(folder: Path) -> Iterator[str]:
    """Yield the paths of the files and the empty folders in a folder, but for what a crash of ours left."""
    for path, folders, files in os.walk(folder):
        place = Path(path)
        links = [name for name in folders if (place / name).is_symlink()]
        empty = [name for name in folders if name not in links and not any((place / name).iterdir())]
        names = (name for name in (*files, *links, *empty) if not fnmatchcase(name, _HIDDEN))
        yield from ((place / name).relative_to(folder).as_posix() for name in names)


@contextmanager
def replacing(folder: str | Path, contents: Contents) -> Iterator[Path]:
    """Give a new folder to fill; it replaces `folder` when the block ends without an error.

    A crash at any moment leaves the old folder, which `whole` finds.

    Raises:
        ValueError: another process writes the folder, or it holds something that we did not write, see
            `Contents.check`. Nothing is touched.
        NotWritten: the old folder stays, and nothing of the new one is left.
    """
    folder = Path(os.path.realpath(folder))
    if not folder.name or folder == Path.cwd():
        raise ValueError(f"{folder} is where this command works, and cannot be replaced: give a new name")
    new, old = hidden(folder, "new"), hidden(folder, "old")
    with writing(folder), locked(folder):
        _restore(folder)
        contents.check(folder)
        _delete(new)
        _discard(old, folder)
        try:
            new.mkdir(parents=True)
            yield new
            sync(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            fsync(folder.parent)
        finally:
            _restore(folder)
            _delete(new)
        _discard(old, folder)


@contextmanager
def scratch(folder: str | Path, *, keep: bool = False) -> Iterator[Path]:
    """Give a hidden folder for passing work beside another one. It is deleted at the end unless `keep`."""
    place = hidden(Path(os.path.realpath(folder)), "parts")
    place.mkdir(parents=True, exist_ok=True)
    with nullcontext() if keep else locked(folder):  # so that `tidy` spares it
        try:
            yield place
        finally:
            if not keep:
                _delete(place)


def whole(folder: str | Path) -> Path:
    """Return where to read what `replacing` writes: the old folder if a crash came between its renames."""
    folder = Path(os.path.realpath(folder))
    old = hidden(folder, "old")
    return old if old.is_dir() and not folder.exists() else folder


def remove(folder: str | Path, contents: Contents) -> None:
    """Delete a folder that we wrote, and what a crash has left of it.

    Raises:
        ValueError: another process writes the folder, or it holds something that we did not write.
    """
    folder = Path(os.path.realpath(folder))
    with locked(folder):
        _restore(folder)
        contents.check(folder)
        _delete(hidden(folder, "new"))
        _discard(hidden(folder, "old"), folder)
        _discard(folder, folder)


def tidy(folder: str | Path) -> None:
    """Finish or remove what crashes have left anywhere in a folder. What another process writes stays."""
    for path, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if not fnmatchcase(name, _HIDDEN):
                continue
            if name in folders:
                folders.remove(name)
            place = Path(path) / name.removeprefix(".").rpartition(".rocketqa-")[0]
            # Letting go of a lock removes its file, unless this process had it before.
            with suppress(ValueError), locked(place):
                _restore(place)
                if not name.endswith("-lock"):
                    _delete(Path(path) / name)


def sync(folder: Path) -> None:
    """Wait until all of a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def _restore(folder: Path) -> None:
    """Put the old folder back if a crash came when it had made room and the new one had not come yet."""
    old = hidden(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def _discard(place: Path, folder: Path) -> None:
    """Delete what `folder` was. It gets another name first, so that no half of it is taken for the whole."""
    removed = hidden(folder, "removed")
    _delete(removed)
    if place.exists():
        place.rename(removed)
        _delete(removed)


def _delete(path: Path) -> None:
    """Delete a file or folder. What somebody still has open on a network drive stays for another time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
