"""The wheel: what it holds, and that it works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rocketqa_paddle

ROOT = Path(__file__).parents[2]


def run(*command: object, **settings: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "rocketqa_paddle").rglob("*.py")}
    assert inside == source
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}}
    where = run(sys.executable, "-c", "import rocketqa_paddle; print(rocketqa_paddle.__file__)", **elsewhere)
    assert Path(where.strip()).is_relative_to(site)
    version = run(sys.executable, "-m", "rocketqa_paddle", "--version", **elsewhere)
    assert version.strip() == f"rocketqa_paddle {rocketqa_paddle.__version__}"
    assert "Search an index" in run(site / "bin" / "rocketqa", "search", "--help", **elsewhere)


def test_the_core_asks_for_no_paddle(wheel):
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    core = {need for need in needs if "extra ==" not in need}
    assert not [need for need in core if "paddle" in need or "faiss" in need]
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    known = "cpu", "gpu", "onnx", "milvus", "serve", "clients", "paddlenlp", "demo", "dev", "report"
    assert extras == {*known}
