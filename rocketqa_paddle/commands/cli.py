"""The command `rocketqa`: the table of commands, the parsing of a command line, and `main`.

A command is a function whose parameters are its flags and whose docstring is its help.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from inspect import Parameter, signature
from typing import Any, NoReturn

from rocketqa_paddle import __version__
from rocketqa_paddle.commands import compare, demo, train
from rocketqa_paddle.commands.completion import completion
from rocketqa_paddle.commands.convert import convert_model
from rocketqa_paddle.commands.encode import encode, output_files
from rocketqa_paddle.commands.evaluate import evaluate
from rocketqa_paddle.commands.export import export
from rocketqa_paddle.commands.flags import Parser, shortened
from rocketqa_paddle.commands.hits import export_hits
from rocketqa_paddle.commands.index import index
from rocketqa_paddle.commands.inspect import inspect_model
from rocketqa_paddle.commands.mine import mine
from rocketqa_paddle.commands.models import list_models
from rocketqa_paddle.commands.new import new
from rocketqa_paddle.commands.outputs import claimed
from rocketqa_paddle.commands.presets import list_presets
from rocketqa_paddle.commands.process import (
    abandon_output,
    flushed,
    readable_streams,
    stop_at_once,
    stop_requests,
)
from rocketqa_paddle.commands.report import report
from rocketqa_paddle.commands.rerank import rerank
from rocketqa_paddle.commands.search import search
from rocketqa_paddle.commands.serve import serve
from rocketqa_paddle.commands.tune import tune
from rocketqa_paddle.data.tables import is_standard_output
from rocketqa_paddle.runtime import meeting
from rocketqa_paddle.runtime.device import import_paddle, tune_cpu
from rocketqa_paddle.settings import with_home
from rocketqa_paddle.systems import SYSTEMS

COMMANDS: dict[str, Callable[..., None]] = {
    "encode": encode,
    "index": index,
    "search": search,
    "serve": serve,
    "tune": tune,
    "rerank": rerank,
    "evaluate": evaluate,
    "mine": mine,
    "hits": export_hits,
    "report": report,
    "convert": convert_model,
    "export": export,
    "inspect": inspect_model,
    "models": list_models,
    "new": new,
    "presets": list_presets,
    "completion": completion,
}
"""All commands but `train`, `compare` and `demo`, which read settings from files."""
USAGES = {
    "convert": "SOURCE TARGET [--to FORMAT]",
    "export": "SOURCE TARGET [--to onnx] [--int8] [--KEY VALUE ...]",
    "hits": "HITS OUTPUT [--format tsv|trec] [--k N]",
    "inspect": "CHECKPOINT",
    "models": "",
    "report": "RUN [--output FILE.html] [--baseline STEP|bm25]",
    "completion": "bash|zsh",
    "search": "[QUERY ...] --checkpoint FOLDER [--KEY VALUE ...]",
    "new": "SYSTEM --data FOLDER [--output RUN] > FILE.yaml",
    "presets": "[NAME]",
}
"""The usage of commands with words on the command line; all parameters are, unless `_WORDS` has some."""
_WORDS: dict[str, dict[str, Any]] = {
    "search": {
        "query": {"type": str, "nargs": "*", "default": [], "help": "what to search for, or --queries"}
    },
    "new": {"system": {"choices": [*SYSTEMS], "help": "the system to train"}},
    "presets": {"name": {"type": str, "nargs": "?", "help": "the preset to print"}},
}
"""The parameters of a command that are words on the command line, where others are flags."""
_WITHOUT_PADDLE = ("presets", "completion")
"""Commands that compute nothing."""
WRITTEN: dict[str, Callable[[str], list[str]]] = {
    "encode": output_files,
    **dict.fromkeys(("search", "rerank", "mine", "hits"), lambda output: [output]),
}
"""The files that commands write, by their `--output`. Commands that write folders check them themselves."""
_PATHS = (
    *("checkpoint", "index", "reranker", "run", "queries", "passages", "titles", "qrels", "input", "output"),
    *("baseline", "source", "target", "hits", "uri", "delete", "api_key_file", "answers", "data"),
)
"""The names of parameters that name files and folders."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command.

    The exit code is 2, with a message, on a mistake of the user's or without Paddle, 130 on a request to stop
    (Ctrl-C or SIGTERM), 141 where nobody reads the output any more, and 1 where another rank is gone.
    """
    readable_streams()
    try:
        with flushed():
            _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        abandon_output()
        sys.exit(141)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("ROCKETQA_DEBUG"):
            raise
        _fail(str(error), 2)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last finished piece"
        words = sys.argv[1:] if arguments is None else arguments
        _fail("stopped" + goes_on * (words[:1] in (["train"], ["compare"], ["demo"], ["index"])), 130)
    except RuntimeError as error:
        _end(error)


def _run(arguments: list[str]) -> None:
    tune_cpu()
    with stop_at_once("rocketqa: stopped"):
        call = parse(arguments)
        if arguments[0] not in _WITHOUT_PADDLE:
            import_paddle()
        _silence_libraries()
    with stop_requests():  # after Paddle, which takes SIGTERM for a crash
        call()


def _end(error: RuntimeError) -> NoReturn:
    """End with a message on a rank that is lost or a training that was stopped; raise any other error."""
    from rocketqa_paddle.runtime import distributed

    if told := distributed.told_of_lost_ranks(error):  # at once: the launcher leaves little time
        print(f"rocketqa: {told}; the same command goes on from what was saved", file=sys.stderr, flush=True)
        os._exit(1)  # a regular end would wait for the rank that is lost

    from rocketqa_paddle.training.trainer import Stopped

    if isinstance(error, Stopped):
        _fail(f"stopped after {error}, saved; the same command goes on", 130)
    raise error


def parse(arguments: list[str]) -> Callable[[], None]:
    """Read a command line and return the call that it stands for. A mistake in it exits 2."""
    for word in arguments:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise ValueError(f"{word!r} is not UTF-8: rename the file, or correct the flag")
    # jsonargparse loses its way in the errors of nested subcommands, so each level has a parser of its own.
    parsers = {"train": train.parse, "compare": compare.parse, "demo": demo.parse}
    command, *flags = arguments or [""]
    if command in parsers:
        return parsers[command](flags)
    if command not in COMMANDS:
        _parser().parse_args(arguments)  # exits: help, the version, or a mistake
    values = _command_parser(command).parse_args(flags).as_dict().items()
    paths = {name: with_home(value) if isinstance(value, str) else value for name, value in values}
    if empty := [name for name, value in paths.items() if value == "" and name in _PATHS]:
        raise ValueError(f"--{empty[0]} is empty: give a name, or leave the flag out")
    if command == "completion":
        paths["parser"] = _whole_parser()
    call = partial(COMMANDS[command], **paths)
    if paths.get("output") and command in WRITTEN:
        inputs = [paths[name] for name in _PATHS if name != "output" and paths.get(name)]
        call = partial(_holding, WRITTEN[command](paths["output"]), inputs, call)
    return partial(_apart_from_data, call) if is_standard_output(paths.get("output") or "") else call


def _holding(outputs: list[str], inputs: list[str], call: Callable[[], None]) -> None:
    """Call a command while its outputs are checked and held."""
    with claimed(outputs, inputs):
        call()


def _apart_from_data(call: Callable[[], None]) -> None:
    """Call a command whose data go to standard output; what it tells goes to standard error."""
    with redirect_stdout(sys.stderr):
        call()


def _parser() -> Parser:
    """A parser that knows the names of the commands."""
    return _parser_with({name: Parser() for name in ("train", "compare", "demo")})


def _whole_parser() -> Parser:
    """A parser with all flags of all commands."""
    own = {"train": Parser(), "compare": compare.parser(), "demo": demo.parser(demo.SYSTEM)}
    parser = _parser_with(own)
    train.add_systems(own["train"], SYSTEMS.values())
    return parser


def _parser_with(own: Mapping[str, Parser]) -> Parser:
    parser = Parser(prog="rocketqa", description="Dense retrieval and re-ranking on PaddlePaddle.")
    parser.add_argument("--version", action="version", version=f"rocketqa_paddle {__version__}")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("train", own["train"], help="train a system from raw text")
    commands.add_subcommand("compare", own["compare"], help=_first_line(compare.compare))
    commands.add_subcommand(
        "demo", own["demo"], help="train a system on Python's own documentation, and search"
    )
    for name, function in COMMANDS.items():
        commands.add_subcommand(name, _command_parser(name), help=_first_line(function))
    return parser


def _command_parser(name: str) -> Parser:
    function, words = COMMANDS[name], _WORDS.get(name, {})
    positional = name in USAGES and not words
    parser = Parser(
        prog=f"rocketqa {name}",
        usage=f"rocketqa {name} {USAGES.get(name) or _usage(function)}".rstrip(),
        description=function.__doc__.split("\n\n")[0],
    )
    parser.add_function_arguments(function, as_group=False, as_positional=positional, skip={*words, "parser"})
    parser.let_switches_stand_alone()
    for word, options in words.items():
        parser.add_argument(word, **options)
    return parser


def _usage(function: Callable[..., None]) -> str:
    """The flags that a command must have, and a word for the others."""
    parameters = signature(function).parameters.values()
    needed = [f"--{each.name} {each.name.upper()}" for each in parameters if each.default is Parameter.empty]
    return " ".join([*needed, "[--KEY VALUE ...]"] if parameters else [])


def _first_line(function: Callable[..., None]) -> str:
    line = (function.__doc__ or "").split("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _silence_libraries() -> None:
    """Hide what libraries log about their progress; warnings still show, as sentences without code."""
    warnings.formatwarning = lambda message, *_, **__: f"rocketqa: {shortened(str(message))}\n"
    for library in ("faiss", "bm25s", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # bm25s sets its own level when it is imported
    logging.getLogger("bm25s").addFilter(lambda record: record.levelno >= logging.WARNING)


def _fail(message: str, code: int) -> NoReturn:
    print(f"rocketqa: {shortened(message)}", file=sys.stderr)
    meeting.leave(shortened(message))
    sys.exit(code)
