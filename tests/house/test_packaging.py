"""Sdist and wheel: what they hold, that an index takes them, and that the wheel works on its own."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import toy

import rocketqa_paddle
from rocketqa_paddle import presets

ROOT = Path(__file__).parents[2]


def run(*command: object, **settings: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The sdist, and the wheel that is made of it and not of the checkout."""
    pytest.importorskip("build", reason="needs the extra dev")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    package = ROOT / "rocketqa_paddle"
    source = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    data = {f"rocketqa_paddle/presets/{name}.yaml" for name in presets.names()}
    data |= {"rocketqa_paddle/py.typed", "rocketqa_paddle/data/pydocs/questions.tsv"}
    data.add("rocketqa_paddle/serve/page.html")
    assert inside == source | data
    assert any(name.endswith("LICENSE") for name in names)


def test_the_sdist_holds_what_the_checkout_does(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "Makefile", "docs/systems.md", "examples/train.sh"} <= names
    assert {"tests/toy.py", "tests/house/test_packaging.py", "checkpoints/README.md"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("data/", "runs/"))]


def test_an_index_takes_them(dist):
    pytest.importorskip("twine", reason="needs the extra dev")
    assert run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()).count("PASSED") == 2


def test_the_page_of_the_index(metadata):
    assert metadata["License"] == metadata["License-Expression"] or "Apache-2.0" in str(metadata)
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    text = metadata.get_payload()
    assert "## Two commands" in text and "[Qu et al., NAACL 2021](https://arxiv.org/abs/2010.08191)" in text
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", text), "a relative link leads nowhere there"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```.*?^```$", readme, flags=re.MULTILINE | re.DOTALL):
        assert block in text
    named = [url for url in metadata.get_all("Project-URL") if url.startswith("Paper: ")]
    assert all(url.partition(", ")[2] in readme for url in named) and len(named) == 4


def test_the_core_asks_for_no_paddle(metadata):
    core = {need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need}
    assert core and not [need for need in core if "paddle" in need or "faiss" in need]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^    "([\w-]+)": ', setup, flags=re.MULTILINE))
    assert {"cpu", "gpu", "demo", "dev", "completion"} <= extras == set(metadata.get_all("Provides-Extra"))


def outside(folder: Path) -> dict:
    """A process in a folder outside of the checkout, to which nothing points."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"cwd": folder, "env": {**kept, "OMP_NUM_THREADS": "1"}}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of an environment that has the wheel, and what it needs from this environment.

    The packages of this environment are found there by their path. The link by which an installation of a
    checkout is found is not followed.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps")
    run(*pip, wheel, **outside(folder))
    (site,) = folder.glob("lib/python*/site-packages")
    without_compiler = "import sys; sys.modules['numba'] = None"  # it would compile all loops once more
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{without_compiler}\n")
    return folder / "bin"


def test_the_wheel_tells_of_itself(installed, tmp_path):
    elsewhere = outside(tmp_path)
    code = "import rocketqa_paddle; print(rocketqa_paddle.__file__)"
    where = run(installed / "python", "-c", code, **elsewhere)
    assert Path(where.strip()).is_relative_to(installed.parent)
    version = run(installed / "rocketqa", "--version", **elsewhere)
    assert version.strip() == f"rocketqa_paddle {rocketqa_paddle.__version__}"
    assert run(installed / "rocketqa", "presets", "ar2-nq", **elsewhere) == presets.text("ar2-nq")


def test_the_wheel_trains_and_searches(installed, tmp_path):
    toy.write(tmp_path / "data" / "pydocs")
    flags = toy.flags(**{"data.tests": "test", "evaluation.bm25": "false", "stop_on_collapse": "false"})
    told = run(installed / "rocketqa", "demo", "--output", "run", *flags, **outside(tmp_path))
    assert "| retriever, round-001 " in told
    assert told.index("Three searches in run/best") < told.index(
        "\nrun a command and capture its output\n  1. "
    )
    found = run(installed / "rocketqa", "search", "--checkpoint", "run/best", "red dog", **outside(tmp_path))
    assert found.startswith("\nred dog\n  1. ")
