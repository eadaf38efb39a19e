"""The extra `paddlenlp`, in an environment of its own: its pins import, and its ERNIE gives our numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_extra_imports_and_gives_the_same_numbers(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{ROOT}[cpu,paddlenlp]"]
    subprocess.run(install, check=True)
    worker = [python, ROOT / "tests" / "paddlenlp_worker.py", tmp_path / "models"]
    (tmp_path / "models").mkdir()
    result = subprocess.run(worker, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("relative difference") == 2
