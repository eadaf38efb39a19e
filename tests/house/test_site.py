"""The documentation as a site: every page is in it, no link is broken, and nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy


def test_the_site_is_whole_and_opens_offline(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mkdocs-material")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        command, cwd=toy.ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert pages >= {path.stem for path in (toy.ROOT / "docs").glob("*.md")}
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?([^\" >]+)", page.read_text("utf-8"))
        assert loaded
        assert not [file for file in loaded if file.startswith(("http:", "https:", "//"))], page.name
