"""What the parsers of several commands share."""

from jsonargparse import ArgumentParser

CONFIG = "YAML file of settings; flags after it override it"


def let_switches_stand_alone(parser: ArgumentParser) -> None:
    """Make `--report` mean `--report true`, for every flag that is false by default."""
    for action in parser._actions:
        if action.default is False:
            action.nargs, action.const = "?", True
