"""Presets: YAML files of settings that come with the package, each named SYSTEM-COLLECTION."""

from difflib import get_close_matches
from pathlib import Path

_FOLDER = Path(__file__).parent


def names(command: str = "") -> list[str]:
    """Return the names of all presets, or of those for a system (or for `compare`)."""
    return sorted(path.stem for path in _FOLDER.glob(f"{command or '*'}-*.yaml"))


def find(name: str, command: str = "") -> Path:
    """Return the file of a preset, which has to be one for the system `command` if that is given.

    Raises:
        FileNotFoundError: there is no such preset; the message lists those that the user may have meant, or
            else all that fit.
    """
    fitting = names(command) or names()
    if name in fitting:
        return _FOLDER / f"{name}.yaml"
    near = get_close_matches(Path(name).stem, fitting, n=3) or fitting
    kind = f"preset for {command}" if names(command) and command else "preset"
    raise FileNotFoundError(f"no {kind} {Path(name).stem!r}, but there are {', '.join(near)}")


def description(name: str) -> str:
    """Return the first line of a preset's comment, which says in a sentence what it is for."""
    return text(name).partition("\n")[0].removeprefix("# ")


def text(name: str) -> str:
    """Return the file of a preset; see `find`."""
    return find(name).read_text(encoding="utf-8")
