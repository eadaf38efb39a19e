"""Settings from YAML files and flags: what `train` and `compare` read."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentError, Namespace

from rocketqa_paddle import presets
from rocketqa_paddle.commands.flags import Parser, as_list
from rocketqa_paddle.runtime.yaml_files import read_yaml
from rocketqa_paddle.settings import with_home

HELP = "YAML file of settings, or the name of a preset (`rocketqa presets`); flags after it override it"
T = TypeVar("T")


class SettingsParser(Parser):
    """Reads settings of one kind from `--config FILE` and from a flag for each.

    `FILE` may be the name of a preset for `command`, a system or `compare`.
    """

    def __init__(self, kind: type, command: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.kind, self.command = kind, command
        self.add_argument("--config", action=_ConfigFile, help=HELP)
        self.add_class_arguments(kind, as_group=False)
        self.let_switches_stand_alone()


class _ConfigFile(ActionConfigFile):
    """Reads a file, checks its form, and lets every error begin with the name of the file or preset."""

    def __call__(self, parser: SettingsParser, namespace: Namespace, values: str, *_: Any) -> None:
        name, path = _found(with_home(values), parser.command)
        content = with_lists(parser.kind, read_yaml(path), f"{name}: ")
        exits, parser.exit_on_error = parser.exit_on_error, False
        try:
            self.apply_config(parser, namespace, self.dest, json.dumps(content, ensure_ascii=False))
        except (ArgumentError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}") from None
        finally:
            parser.exit_on_error = exits
        namespace[self.dest][-1] = name


def _found(given: str, command: str) -> tuple[str, str | Path]:
    """The name and the place of a file of settings, or of a preset where there is no such file."""
    if Path(given).is_file() or (Path(given).exists() and given not in presets.names()):
        return given, given
    try:
        return f"preset {given}", presets.find(given, command)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{given}: no such file, and {error}") from None


def with_lists(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same values with a list of one, or of what commas separate, where a list is expected.

    `where` stands before the names of settings in errors.

    Raises:
        ValueError: an unknown name, or something else where a section is expected, at any depth.
    """
    hints, made = get_type_hints(kind), {}
    names = [field.name for field in fields(kind)]
    for name, value in values.items():
        if name not in names:
            near = get_close_matches(str(name), names, n=3) or names
            raise ValueError(f"{where}{name} is no setting; there are {', '.join(near)}")
        hint = hints[name]
        if get_origin(hint) is list:
            value = as_list(value)
        elif is_dataclass(hint):
            if not isinstance(value, Mapping):
                given = "empty" if value is None else repr(value)
                raise ValueError(f"{where}{name} is {given}, expected settings by name")
            value = with_lists(hint, value, f"{where}{name}.")
        made[name] = value
    return made


def settings_of(kind: type[T], parsed: Namespace) -> T:
    """Make settings of what was read from files and flags.

    Raises:
        ValueError: a value out of its range; the message names the files and the section.
    """
    files = ", ".join(parsed.config or [])
    try:
        return build(kind, parsed)
    except ValueError as error:
        raise ValueError(f"{files} (or a flag): {error}" if files else str(error)) from None


def build(kind: type[T], values: Namespace, where: str = "") -> T:
    """Make settings of what was read.

    Raises:
        ValueError: a value out of its range; the message names the section that has it.
    """
    hints, read = get_type_hints(kind), {}
    for field in fields(kind):
        value, hint = values[field.name], hints[field.name]
        if is_dataclass(hint):
            if not isinstance(value, Namespace):
                raise ValueError(f"{where}{field.name} is {value!r}, expected settings by name")
            value = build(hint, value, f"{where}{field.name}.")
        read[field.name] = value
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{where.removesuffix('.')}: {error}" if where else str(error)) from None
