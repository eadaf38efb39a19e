"""The command `rocketqa report`: a run as a web page."""

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rocketqa_paddle.commands.outputs import claimed
from rocketqa_paddle.data.tables import is_stream
from rocketqa_paddle.settings import DataSettings
from rocketqa_paddle.systems import SYSTEMS

PAGE = "report.html"
_HEAD = 1000  # bytes in which a page says that this package wrote it


def report(run: str, output: str | None = None, baseline: str | None = None) -> None:
    """Write the report of a run as one HTML file, which a browser shows without a network.

    Args:
        run: the folder of a run, finished or not
        output: HTML file to write; report.html in the run folder when empty
        baseline: a step to compare queries with, such as initial, or bm25, which reads the whole corpus
    """
    from rocketqa_paddle.data.tables import write_lines
    from rocketqa_paddle.runs.archive import Archive
    from rocketqa_paddle.runs.page import write_page

    archive = Archive(run)
    output = output or str(archive.folder / PAGE)
    _check(output, archive.folder)
    parts = [str(path) for path in archive.folder.iterdir() if path.is_dir()]
    with claimed([output], [*parts, archive.data.folder]):
        page = write_page(archive, *_system(archive.config), baseline)
        write_lines(output, [("the page", page.removesuffix("\n"))])
    print(f"report of {run} in {output}")


def _check(output: str, run: Path) -> None:
    """Refuse to replace a file that is no report.

    Raises:
        ValueError: tells to choose another name.
    """
    from rocketqa_paddle.evaluation.html import GENERATOR

    place = Path(os.path.realpath(output))
    if is_stream(output) or not place.is_file():
        return
    with place.open("rb") as file:
        if GENERATOR.encode() not in file.read(_HEAD):
            raise ValueError(f"{output} is no report that this command wrote: choose another --output")


def _system(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The title of the system whose settings these are, and its defaults."""
    for system in SYSTEMS.values():
        if {field.name for field in fields(system.settings)} == config.keys():
            settings = system.settings(output="", data=DataSettings(folder=""))
            return system.title, asdict(settings)
    return "Run", {}
