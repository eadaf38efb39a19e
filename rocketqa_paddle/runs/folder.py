"""The run folder as a whole: whose it is, and who works in it."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from rocketqa_paddle.runtime import distributed
from rocketqa_paddle.runtime.folders import tidy
from rocketqa_paddle.runtime.storage import locked, write_text
from rocketqa_paddle.runtime.yaml_files import read_yaml
from rocketqa_paddle.search import vectors
from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.training import trainer

CONFIG, VOCABULARY, CORPUS, VECTORS = "config.yaml", "vocabulary", "corpus", "vectors"
HEAD = "# The settings of the run in this folder, which writes them anew whenever it goes on."
"""The first line of `config.yaml`."""
_ADDED = {"index"}  # sections of settings that a run which was begun before does not have


def check(folder: Path, settings: RunSettings) -> None:
    """Refuse a folder with a run of another system or version, or with anything else.

    Raises:
        ValueError: tells what is in the way.
    """
    path = folder / CONFIG
    trainer.CONTENTS.check(folder / "last")
    vectors.CONTENTS.check(folder / VECTORS)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file or a device: choose another --output")
    if not path.is_file():
        if folder.is_dir() and any(map(_is_other, folder.iterdir())):
            raise ValueError(f"{folder} holds other files (and no {CONFIG}): choose another --output")
        return
    if any(folder.glob("*/stage.json")):
        raise ValueError(
            f"{folder}: version 0.1 began this run and only it can go on: choose another --output"
        )
    try:
        before = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}: remove this file, and the run goes on") from None
    if differ := before.keys() ^ (dataclasses.asdict(settings).keys() - (_ADDED - before.keys())):
        raise ValueError(
            f"{path}: a run of another system, or version, began this folder (it differs in "
            f"{', '.join(sorted(map(str, differ)))}): choose another --output"
        )
    begun = path.read_text(encoding="utf-8").startswith(HEAD) or any(folder.glob("**/step.json"))
    if not begun:
        raise ValueError(f"{path} was not written by a run, which would replace it: choose another --output")


def _is_other(path: Path) -> bool:
    """Whether something in a run folder is none of what is made before the run has claimed it."""
    return path.name[0] != "." and path.name not in (VOCABULARY, CORPUS)


@contextmanager
def claimed(folder: Path, settings: RunSettings) -> Iterator[None]:
    """Hold the folder for this run alone, and write its settings into `config.yaml`.

    Raises:
        ValueError: another run is at work in it.
    """
    distributed.barrier()  # every rank has read the settings that were there
    with ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(locked(folder / CONFIG))
            tidy(folder)
            text = yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)
            write_text(folder / CONFIG, f"{HEAD}\n{text}")
        distributed.barrier()
        yield
