"""A small retrieval collection of the documentation inside the Python that runs this.

Each docstring gives one item: its first sentence is a query, the rest is the passage that answers it, and
the qualified name is the passage's title. A docstring too short to cut in two is a passage without a query.
The splits share no module. A module is one of the top level, or one inside of a package with so many queries
that it would be most of a split.
"""

from rocketqa_paddle.data.pydocs.collection import QUESTIONS, build
from rocketqa_paddle.data.pydocs.sources import python_roots

__all__ = ["QUESTIONS", "build", "python_roots"]
