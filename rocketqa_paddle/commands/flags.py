"""What the parsers of all commands share: flags that are lists or switches, and errors of bounded length."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, get_args, get_origin

import jsonargparse
from jsonargparse import Namespace, set_loader, set_parsing_settings

from rocketqa_paddle.runtime.yaml_files import LARGEST_FILE, parse_yaml

LONGEST_MESSAGE = 1500
"""Characters of an error. A message quotes what it was given, which may be a whole file."""

_MISSING = "the following arguments are required: "
"""How jsonargparse begins what it says about flags that a command needs."""

_UNKNOWN = "unrecognized arguments: "
"""How it begins what it says about flags that a command does not have."""
_LONGEST_FLAG = 100

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _load_value(text: str) -> Any:
    """Read the value of a flag; one that is too long to be anything else is a text."""
    return parse_yaml(text) if len(text) <= LARGEST_FILE else text


set_loader("yaml", _load_value, exceptions=(ValueError,))


class Parser(jsonargparse.ArgumentParser):
    """Reads a command line. `--measures RR@10,Success@5` is a list, and `--report` is `--report true`."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None, **more: Any) -> Namespace:
        """Read a command line; see `jsonargparse.ArgumentParser`."""
        try:
            return super().parse_args(args and self._with_lists(args), namespace, **more)
        except OverflowError as error:  # a number of hundreds of digits
            self.error(str(error), error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit 2 with a message of bounded length, which names flags as they are written."""
        if message.startswith(_MISSING):
            names = message.removeprefix(_MISSING).split(", ")
            message = f"{self.prog} needs {', '.join(map(self._as_written, names))}"
        elif message.startswith(_UNKNOWN):
            message += self._near(message.removeprefix(_UNKNOWN).split(maxsplit=1)[0])
        super().error(shortened(message), ex)

    def _near(self, word: str) -> str:
        """What to say about flags with names like that of an unknown one."""
        known = [flag for action in self._actions for flag in action.option_strings]
        near = get_close_matches(word.partition("=")[0][:_LONGEST_FLAG], known)
        return f"; there are {', '.join(near)}" if near and word.startswith("--") else ""

    def _as_written(self, name: str) -> str:
        """A parameter as a user writes it: `--name`, or `NAME` for a word without a flag."""
        words = {action.dest for action in self._actions if not action.option_strings}
        return name.upper() if name in words else f"--{name}"

    def let_switches_stand_alone(self) -> None:
        """Make `--report` mean `--report true`, for every flag that is false by default."""
        for action in self._actions:
            if action.default is False:
                action.nargs, action.const = "?", True

    def _with_lists(self, args: Sequence[str]) -> list[str]:
        """Put brackets around the values of flags that take a list, unless they have them."""
        lists = {
            flag
            for action in self._actions
            if _is_list(getattr(action, "_typehint", None))
            for flag in action.option_strings
        }
        written: list[str] = []
        for word in args:
            flag, equals, value = word.partition("=")
            if written and written[-1] in lists and not word.startswith("--"):
                word = json.dumps(as_list(word)) if isinstance(as_list(word), list) else word
            elif equals and flag in lists and isinstance(as_list(value), list):
                word = f"{flag}={json.dumps(as_list(value))}"
            written.append(word)
        return written


def _is_list(hint: Any) -> bool:
    """Whether a type is a list, or a list or something else."""
    return list in map(get_origin, (hint, *get_args(hint)))


def as_list(value: Any) -> Any:
    """The parts of a text between commas, for what is to be a list; another value as it is."""
    if not isinstance(value, str) or value.lstrip().startswith("["):
        return value
    return [part.strip() for part in value.split(",")]


def shortened(message: str) -> str:
    """Leave out the middle of a message that is too long to be read."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    head, tail = LONGEST_MESSAGE * 2 // 3, LONGEST_MESSAGE // 3
    return f"{message[:head]} … ({len(message) - head - tail} characters left out) … {message[-tail:]}"
