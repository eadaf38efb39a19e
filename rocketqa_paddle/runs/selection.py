"""Which steps of a run to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Begin with a step and take those before as they are; end after a step; only tell what would be done."""

    from_stage: str | None = None
    until_stage: str | None = None
    dry_run: bool = False

    def check(self, names: Sequence[str]) -> None:
        """Refuse steps that the run does not have.

        Raises:
            ValueError: names those it has.
        """
        first, last = self.from_stage, self.until_stage
        for flag, name in {"--from-stage": first, "--until-stage": last}.items():
            if name not in (None, *names):
                raise ValueError(f"{flag} {name}: the steps of this run are {', '.join(names)}")
        if first and last and names.index(first) > names.index(last):
            raise ValueError(f"--from-stage {first} comes after --until-stage {last}")

    def trusts(self, name: str, names: Sequence[str]) -> bool:
        """Whether a step is taken as it is."""
        return self.from_stage in names and names.index(name) < names.index(self.from_stage)

    def wants(self, name: str, names: Sequence[str]) -> bool:
        """Whether a step is looked at."""
        return self.until_stage not in names or names.index(name) <= names.index(self.until_stage)


ALL = Selection()
