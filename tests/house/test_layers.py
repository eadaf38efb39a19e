"""The house's rules: a folder imports from those before it, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rocketqa_paddle

PACKAGE = Path(rocketqa_paddle.__file__).parent
ORDER = (
    *("records", "settings", "runtime", "networks", "losses", "contrastive", "data", "checkpoints", "search"),
    *("evaluation", "mining", "training", "runs", "systems", "presets", "toolkit", "mteb", "serve"),
    "commands",
    "__main__",
)
"""The folders and files of the package, in the order of their imports."""

Imports = Mapping[str, set[str]]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(module: str, source: str) -> Iterator[str]:
    """The modules of this package that a module's source imports, anywhere in it."""
    package = ["rocketqa_paddle", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        ours = [
            name.removeprefix("rocketqa_paddle.") for name in found if name.startswith("rocketqa_paddle.")
        ]
        yield from (name for name in ours if name in MODULES)


def room(module: str) -> str:
    """The folder or file of the package's top level in which a module lies."""
    return module.partition(".")[0]


def wrong_imports(imports: Imports) -> list[str]:
    """Imports from a folder that comes later, and circles among the files of the package."""
    wrong = [
        f"{module} imports {other}, which comes later"
        for module, others in imports.items()
        for other in sorted(others)
        if ORDER.index(room(other)) > ORDER.index(room(module))
    ]
    files = {
        module: {other for other in others if other != module and not module.startswith(f"{other}.")}
        for module, others in imports.items()
    }
    try:
        TopologicalSorter(files).prepare()
    except CycleError as error:
        wrong.append(f"circle: {' -> '.join(error.args[1])}")
    return wrong


@pytest.fixture(scope="module")
def imports() -> Imports:
    return {
        name: set(imported(name, path.read_text(encoding="utf-8"))) for name, path in MODULES.items() if name
    }


def test_every_file_and_folder_has_its_place_in_the_order() -> None:
    assert {room(module) for module in MODULES if module} == {*ORDER}


def test_imports_follow_the_order(imports: Imports) -> None:
    assert {"records", "networks.tokenization"} <= imports["networks.batching"] | imports["data.store"]
    assert wrong_imports(imports) == []


@pytest.mark.parametrize(
    "imports, problem",
    [
        ({"networks.ernie": {"search.index"}}, "networks.ernie imports search.index, which comes later"),
        ({"training.trainer": {"systems.pair.run"}}, "training.trainer imports systems.pair.run"),
        ({"runs.a": {"runs.b"}, "runs.b": {"runs.c"}, "runs.c": {"runs.a"}}, "circle"),
    ],
)
def test_the_rule_finds_what_breaks_it(imports: Imports, problem: str) -> None:
    (found,) = wrong_imports(imports)
    assert problem in found


@pytest.mark.parametrize(
    "source, module, expected",
    [
        ("import rocketqa_paddle.networks.ernie as e", "toolkit", {"networks.ernie"}),
        ("from rocketqa_paddle import losses, __version__", "toolkit", {"losses"}),
        ("from rocketqa_paddle.networks import ernie", "toolkit", {"networks", "networks.ernie"}),
        ("def f():\n    from rocketqa_paddle.networks.ernie import Ernie", "toolkit", {"networks.ernie"}),
        ("from . import ernie", "networks.forward", {"networks", "networks.ernie"}),
        ("from ..losses import in_batch", "networks.forward", {"losses"}),
        ("import paddle, rocketqa", "toolkit", set()),
    ],
)
def test_the_rule_sees_every_way_to_import(source: str, module: str, expected: set[str]) -> None:
    assert set(imported(module, source)) == expected


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: all but the bodies of functions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending += [
            child
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ]


def test_nothing_needs_paddlenlp_or_pytorch_when_imported() -> None:
    for path in MODULES.values():
        for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"paddlenlp", "torch", "transformers"}, path


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_importing_the_package_imports_nothing_heavy_and_changes_nothing() -> None:
    code = (
        "import os, sys, warnings; before = dict(os.environ), list(warnings.filters), list(sys.argv)\n"
        "import rocketqa_paddle, rocketqa_paddle.settings, rocketqa_paddle.records\n"
        "import rocketqa_paddle.runtime.device, rocketqa_paddle.systems\n"
        "assert before == (dict(os.environ), list(warnings.filters), list(sys.argv))\n"
        "heavy = ('paddle', 'numpy', 'faiss', 'tokenizers', 'torch', 'paddlenlp')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_what_the_documentation_names_is_there_after_one_import() -> None:
    code = (
        "import sys, rocketqa_paddle; rocketqa_paddle.runtime.device.tune_cpu()\n"
        "assert 'paddle' not in sys.modules\n"
        "print(rocketqa_paddle.losses.__name__, rocketqa_paddle.SearchEngine.__name__)"
    )
    assert run(code) == "rocketqa_paddle.losses SearchEngine"


def test_without_paddle_a_line_says_how_to_install_it() -> None:
    code = (
        "import sys, rocketqa_paddle; sys.modules['paddle'] = None\n"
        "for use in ('load_model(\"x\")', 'SearchEngine', 'losses'):\n"
        "    try: eval(f'rocketqa_paddle.{use}')\n"
        "    except ImportError as error: print(error)"
    )
    line = "PaddlePaddle cannot be imported: pip install 'rocketqa_paddle[cpu]' (for a GPU: see the README) ("
    told = run(code).split("\n")
    assert len(told) == 3 and all(each.startswith(line) for each in told), told


def test_the_command_line_describes_itself_without_paddle() -> None:
    code = (
        "import sys; from rocketqa_paddle.commands import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        "print('paddle' in sys.modules)"
    )
    assert run(code).endswith("False")
