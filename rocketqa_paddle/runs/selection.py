"""Which steps of a run to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Selection:
    """Begin with a step and take those before as they are; end after a step; only tell what would be done."""

    from_stage: str | None = None
    until_stage: str | None = None
    dry_run: bool = False
    names: Sequence[str] = ()
    """The steps of the run, in their order."""

    def among(self, names: Sequence[str]) -> Selection:
        """The same selection among the steps of a run.

        Raises:
            ValueError: the run does not have a step; names those it has.
        """
        first, last = self.from_stage, self.until_stage
        for flag, name in {"--from-stage": first, "--until-stage": last}.items():
            if name not in (None, *names):
                raise ValueError(f"{flag} {name}: the steps of this run are {', '.join(names)}")
        if first and last and names.index(first) > names.index(last):
            raise ValueError(f"--from-stage {first} comes after --until-stage {last}")
        return replace(self, names=names)

    def trusts(self, name: str) -> bool:
        """Whether a step is taken as it is."""
        return bool(self.from_stage) and self.names.index(name) < self.names.index(self.from_stage)

    def wants(self, name: str) -> bool:
        """Whether a step is looked at."""
        return not self.until_stage or self.names.index(name) <= self.names.index(self.until_stage)


ALL = Selection()
