"""Build the demo's collection with other packages, other questions or another size.

    python examples/build_pydocs.py                  # the standard library
    python examples/build_pydocs.py --installed scipy numpy     # and two installed packages
    python examples/build_pydocs.py --installed      # and all of them

`rocketqa demo --data-only` builds the collection that the demo trains on.
"""

import argparse
import sys
from pathlib import Path

from rocketqa_paddle.data import pydocs

parser = argparse.ArgumentParser(description="Build a retrieval collection from Python's own docstrings.")
parser.add_argument("--out", type=Path, default=Path("data/pydocs"), help="folder (default: %(default)s)")
parser.add_argument(
    "--installed",
    nargs="*",
    metavar="PACKAGE",
    help="read these installed packages as well; without names, all",
)
parser.add_argument("--questions", type=Path, default=pydocs.QUESTIONS, help="the natural questions")
parser.add_argument("--max-passages", type=int, metavar="N", help="keep a sample of N passages")
options = parser.parse_args()
try:
    roots = pydocs.python_roots(options.installed)
    summary = pydocs.build(roots, options.out, options.questions, options.max_passages)
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
print(f"wrote {options.out}\n{summary}")
