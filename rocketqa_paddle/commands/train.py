"""The command `rocketqa train`."""

from collections.abc import Callable, Collection, Sequence
from functools import partial

from rocketqa_paddle.commands.configs import SettingsParser, settings_of
from rocketqa_paddle.commands.flags import Parser
from rocketqa_paddle.runs.selection import Selection
from rocketqa_paddle.runtime.device import arithmetic, select_device
from rocketqa_paddle.settings import RunSettings
from rocketqa_paddle.systems import SYSTEMS, System

FROM_STAGE = "begin with this step; take those before as they are, even if their settings have changed"
DRY_RUN = "tell the steps, their sizes, and estimates of time and disk; do nothing"


def train(system: System, settings: RunSettings, selection: Selection) -> None:
    """Train a system, on this process or on all that `fleetrun` started."""
    join_ranks(settings)
    from rocketqa_paddle.runs.run import Run

    Run(settings, selection.dry_run).go(system.having(settings), selection)


def join_ranks(settings: RunSettings) -> None:
    """Choose the device of this process, and join the others that `fleetrun` started.

    Raises:
        ValueError: the machine has no such device, or no instructions for such a precision.
    """
    from rocketqa_paddle.runtime import distributed

    select_device(settings.use_cuda, distributed.local_gpu())
    arithmetic(settings.precision)
    distributed.init(settings.use_cuda, settings.timeout_minutes)


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Read the command line after `rocketqa train`. A mistake in it exits 2."""
    name, *flags = arguments or [""]
    if name not in SYSTEMS:
        _parser().parse_args(list(arguments))  # exits: help, or a mistake
    system = SYSTEMS[name]
    values = _own_parser(system).parse_args(flags)
    selection = Selection(values.from_stage, values.until_stage, values.dry_run)
    return partial(train, system, settings_of(system.settings, values), selection)


def _parser() -> Parser:
    """A parser that knows the names of the systems."""
    parser = Parser(prog="rocketqa train", description="Train a system from raw text; a stopped run goes on.")
    add_systems(parser, [])
    return parser


def add_systems(parser: Parser, systems: Collection[System]) -> None:
    """Give a parser a subcommand for every system, with flags for the settings of these."""
    subcommands = parser.add_subcommands(required=True, dest="system")
    for system in SYSTEMS.values():
        own = _own_parser(system) if system in systems else Parser()
        description = system.description[0].lower() + system.description[1:].rstrip(".")
        subcommands.add_subcommand(system.name, own, help=description)


def _own_parser(system: System) -> Parser:
    usage = f"rocketqa train {system.name} [--config FILE|PRESET] [--KEY VALUE ...] [--dry-run]"
    return system_parser(system, usage, f"{system.title}: {system.description}")


def system_parser(system: System, usage: str, description: str) -> SettingsParser:
    """A parser with the settings of a system and the flags that select its steps."""
    prog = usage.partition(" [")[0]
    parser = SettingsParser(system.settings, system.name, prog=prog, usage=usage, description=description)
    parser.add_argument("--from-stage", "--from_stage", type=str, metavar="STEP", help=FROM_STAGE)
    parser.add_argument(
        "--until-stage", "--until_stage", type=str, metavar="STEP", help="end after this step"
    )
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help=DRY_RUN)
    return parser
