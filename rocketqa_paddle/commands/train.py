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
    parsed = _parser(arguments).parse_args(list(arguments))
    system, values = SYSTEMS[parsed.system], parsed[parsed.system]
    selection = Selection(values.from_stage, values.until_stage, values.dry_run)
    return partial(train, system, settings_of(system.settings, values), selection)


def _parser(arguments: Sequence[str]) -> Parser:
    """A parser with a subcommand for every system; only the one that is asked for gets its settings."""
    parser = Parser(prog="rocketqa train", description="Train a system from raw text; a stopped run goes on.")
    add_systems(parser, [system for system in SYSTEMS.values() if system.name in arguments])
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
    parser = SettingsParser(system.settings, system.name, usage=usage, description=description)
    parser.add_argument("--from-stage", "--from_stage", type=str, metavar="STEP", help=FROM_STAGE)
    parser.add_argument(
        "--until-stage", "--until_stage", type=str, metavar="STEP", help="end after this step"
    )
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help=DRY_RUN)
    return parser
