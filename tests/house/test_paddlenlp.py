"""The extra `paddlenlp`, in an environment of its own: it can be imported, and it computes our numbers.

The cases are in `paddlenlp_worker.py`: models that PaddleNLP saves and we read, models that we write and
PaddleNLP loads, its tokenizers, and models by name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = [
    "from ErnieModel",
    "from BertModel",
    "to ErnieModel",
    "to BertModel",
    "ids of ErnieTokenizer",
    "names",
]


@pytest.mark.slow
def test_the_extra_imports_and_gives_the_same_numbers(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{ROOT}[cpu,paddlenlp]"]
    subprocess.run(install, check=True)
    worker = [python, ROOT / "tests" / "paddlenlp_worker.py", tmp_path / "models"]
    result = subprocess.run(worker, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    failed = [case for case in found if not case.get("difference", 1) < 1e-5]
    assert not failed, "\n".join(f"{c['case']}: {c.get('difference', c.get('error'))}" for c in failed)
    for kind in KINDS:
        assert any(case["case"].startswith(kind) for case in found), kind
