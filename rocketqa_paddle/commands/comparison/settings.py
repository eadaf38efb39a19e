"""The settings of a comparison, and those of its rows."""

import copy
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from jsonargparse import ArgumentError

from rocketqa_paddle.commands.configs import SettingsParser, build, with_lists
from rocketqa_paddle.settings import (
    RetrieverSettings,
    RunSettings,
    WarmedUpSettings,
    at_least,
)
from rocketqa_paddle.systems import SYSTEMS

WARM_UP = "warm-up"
"""What a comparison calls the models that all systems begin with."""
_TAKEN = (WARM_UP, "initial", "best", "last", "vocabulary", "tensorboard", "visualdl")  # folders of its own


@dataclass(frozen=True)
class CompareSettings(WarmedUpSettings):
    """Everything that `rocketqa compare` reads."""

    retriever: RetrieverSettings = field(default_factory=lambda: RetrieverSettings(shared=True))
    """The dual encoder. It has one tower by default, because PAIR needs that."""
    depth: int = 50
    """Candidates retrieved a query, from which the warm-up's re-ranker gets its negatives."""
    steps: int = 1000
    """Optimizer steps of every system after the warm-up, shared out among its trainings: in the proportion of
    their own `steps`, or equally where these are empty."""
    systems: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {"system": name} for name in SYSTEMS}
    )
    """A row each, by its name: `system` (a name that `rocketqa train` knows), and settings of that system."""
    baseline: str = WARM_UP
    """The row that stands first, against which the others are tested: `warm-up`, or one of `systems`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps, depth=self.depth)
        if not self.systems:
            raise ValueError("systems is empty: name at least one, such as {AR2: {system: ar2}}")
        for row, settings in self.systems.items():
            _check_row(row, settings)
        folders = [folder_name(row) for row in self.systems]
        for row, folder in zip(self.systems, folders, strict=True):
            if not folder:
                raise ValueError(f"systems.{row}: a name without a letter or digit: rename it")
            if folders.count(folder) > 1:
                raise ValueError(f"systems.{row}: another row needs the folder {folder!r}: rename it")
            if folder in _TAKEN:
                raise ValueError(
                    f"systems.{row}: the comparison itself needs the folder {folder!r}: rename it"
                )
        if self.baseline not in (WARM_UP, *self.systems):
            raise ValueError(f"baseline={self.baseline!r}, expected {WARM_UP} or one of {[*self.systems]}")


def folder_name(row: str) -> str:
    """The folder of a row's run inside that of the comparison."""
    return re.sub(r"[\W_]+", "-", row.casefold()).strip("-")


def _check_row(row: str, settings: dict[str, Any]) -> None:
    if not isinstance(row, str):
        raise ValueError(f"systems.{row}: the name is a number: put it in quotes")
    name = settings.get("system")
    if name not in [*SYSTEMS]:  # a list or a dict has no hash
        raise ValueError(f"systems.{row}: system={name!r}, expected one of {[*SYSTEMS]}")
    kind = SYSTEMS[name].settings
    common = {field.name for field in fields(CompareSettings)}
    own = {field.name for field in fields(kind)} - common
    for key in settings.keys() - {"system"} - own:
        where = "set it once for all systems" if key in common else f"{name} has {sorted(own)}"
        raise ValueError(f"systems.{row}: {key} is no setting of this system alone: {where}")
    with_lists(kind, _without_system(settings), f"systems.{row}: ")  # raises where a section is none
    if warm := settings.keys() & kind.warmed_up.keys():
        raise ValueError(
            f"systems.{row}: {min(warm)} is not for a comparison, which sets warmup_retriever and "
            "warmup_reranker once for all systems"
        )


def row_settings(settings: CompareSettings, row: str) -> RunSettings:
    """What all rows share, and the row's own settings."""
    system = SYSTEMS[settings.systems[row]["system"]]
    values = {field.name: _plain(getattr(settings, field.name)) for field in fields(RunSettings)}
    values["evaluation"] |= {"init": False, "bm25": False}  # they are measured once, with the warm-up
    own = with_lists(system.settings, _without_system(settings.systems[row]), f"systems.{row}: ")
    parser = SettingsParser(system.settings, exit_on_error=False)
    try:
        values = copy.deepcopy({**values, **own, **system.settings.warmed_up})
        return build(system.settings, parser.parse_object(values))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"systems.{row}: {error}") from None


def _without_system(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "system"}


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) else value
