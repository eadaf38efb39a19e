"""The house's rule: imports point down, or sideways without a circle, and importing the package is cheap."""

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
FLOORS = {
    name: floor
    for floor, names in {
        6: "cli __main__ serve mine compare",
        5: "systems.rocketqa systems.pair systems.rocketqav2 systems.ar2 systems",
        4: "trainer mining pipeline report finetune models plan staging warmup denoising rounds thresholds",
        3: "retrieval scoring contrastive dataset",
        2: "checkpoints convert convert.weights convert.reference convert.paddlenlp convert.huggingface "
        "hub starting",
        1: "encoders batching formats metrics index cloze",
        0: "ernie losses loss_scale tokenization distributed config records device storage stages",
    }.items()
    for name in names.split()
}
ROOT = ""  # the package itself: it hands out names, and everyone may ask for its version

Imports = Mapping[str, set[str]]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(module: str, source: str) -> Iterator[str]:
    """Our own modules that a module's source imports, anywhere in it."""
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
        ours = [name.removeprefix("rocketqa_paddle").lstrip(".") for name in found if is_ours(name)]
        yield from (name for name in ours if name in MODULES and name != ROOT)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == "rocketqa_paddle"


def wrong_imports(imports: Imports) -> list[str]:
    """Imports that point up, and circles of those that point sideways."""
    wrong = [
        f"{module} (floor {FLOORS[module]}) imports {other} (floor {FLOORS[other]})"
        for module, others in imports.items()
        for other in sorted(others)
        if FLOORS[other] > FLOORS[module]
    ]
    sideways = {
        module: {other for other in others if FLOORS[other] == FLOORS[module] and other != module}
        for module, others in imports.items()
    }
    try:
        TopologicalSorter(sideways).prepare()
    except CycleError as error:
        wrong.append(f"circle: {' -> '.join(error.args[1])}")
    return wrong


@pytest.fixture(scope="module")
def imports() -> Imports:
    return {
        name: set(imported(name, path.read_text(encoding="utf-8")))
        for name, path in MODULES.items()
        if name != ROOT
    }


def test_every_module_has_a_floor(imports: Imports) -> None:
    assert not imports.keys() - FLOORS.keys(), (
        "give a new module its floor, here and in the plan of the house"
    )


def test_imports_point_down_or_sideways_without_a_circle(imports: Imports) -> None:
    assert {"records", "tokenization"} <= imports["batching"] | imports["index"]
    assert wrong_imports(imports) == []


@pytest.mark.parametrize(
    "imports, problem",
    [
        ({"ernie": {"encoders"}}, "ernie (floor 0) imports encoders (floor 1)"),
        ({"trainer": {"systems.rocketqav2"}}, "imports systems.rocketqav2 (floor 5)"),
        ({"trainer": {"pipeline"}, "pipeline": {"mining"}, "mining": {"trainer"}}, "circle"),
    ],
)
def test_the_rule_finds_what_breaks_it(imports: Imports, problem: str) -> None:
    (found,) = wrong_imports(imports)
    assert problem in found


@pytest.mark.parametrize(
    "source, module, expected",
    [
        ("import rocketqa_paddle.ernie as e", "cli", {"ernie"}),
        ("from rocketqa_paddle import losses, __version__", "cli", {"losses"}),
        ("from rocketqa_paddle.systems import rocketqav2", "cli", {"systems", "systems.rocketqav2"}),
        ("def f():\n    from rocketqa_paddle.ernie import Ernie", "cli", {"ernie"}),
        ("from . import ernie\nfrom .losses import in_batch", "cli", {"ernie", "losses"}),
        ("from .. import ernie\nfrom ..losses import in_batch", "systems.pair", {"ernie", "losses"}),
        ("import paddle, rocketqa", "cli", set()),
    ],
)
def test_the_rule_sees_every_way_to_import(source: str, module: str, expected: set[str]) -> None:
    assert set(imported(module, source)) - {"systems"} == expected - {"systems"}


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
        "import rocketqa_paddle, rocketqa_paddle.config, rocketqa_paddle.records, rocketqa_paddle.device\n"
        "assert before == (dict(os.environ), list(warnings.filters), list(sys.argv))\n"
        "heavy = ('paddle', 'numpy', 'faiss', 'tokenizers', 'torch', 'paddlenlp')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_the_command_line_describes_itself_without_paddle() -> None:
    code = (
        "import sys; from rocketqa_paddle import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        "print('paddle' in sys.modules)"
    )
    assert run(code).endswith("False")
