"""The command `rocketqa compare`: systems side by side, from one warm-up, with one budget of steps."""

from collections.abc import Callable, Sequence
from functools import partial

from rocketqa_paddle.commands.comparison.settings import CompareSettings, row_settings
from rocketqa_paddle.commands.configs import SettingsParser, settings_of
from rocketqa_paddle.commands.train import DRY_RUN, join_ranks


def parser() -> SettingsParser:
    """The parser of what stands after `rocketqa compare`."""
    usage = "rocketqa compare --config FILE|PRESET [--KEY VALUE ...] [--dry-run]"
    told = compare.__doc__.partition("\n\n    Raises")[0]
    made = SettingsParser(CompareSettings, "compare", prog="rocketqa compare", usage=usage, description=told)
    made.add_argument("--dry-run", "--dry_run", action="store_true", help=DRY_RUN)
    return made


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Read the command line after `rocketqa compare`. A mistake in it exits 2."""
    values = parser().parse_args(list(arguments))
    return partial(compare, settings_of(CompareSettings, values), dry_run=values.dry_run)


def compare(settings: CompareSettings, dry_run: bool = False) -> None:
    """Train systems side by side, from one warm-up and with as many steps, and compare them.

    A comparison that was stopped goes on; a system whose settings changed is trained again, the others are
    not. Writes `report.md` and `curves.png` into the folder, beside a folder of every row. A dry run tells
    the steps of all rows and what they would take, and writes nothing.

    Raises:
        ValueError: settings that a system does not take, steps that cannot be shared out, data that do not
            hold together, a folder of something else. Before any work.
    """
    join_ranks(settings)
    from rocketqa_paddle.commands.comparison.walk import share_out, walk
    from rocketqa_paddle.runs.run import Run
    from rocketqa_paddle.runs.selection import Selection

    rows, run = {row: row_settings(settings, row) for row in settings.systems}, Run(settings, dry_run)
    rows = share_out(run, settings, rows)
    run.go(partial(walk, settings=settings, rows=rows), Selection(dry_run=dry_run))
