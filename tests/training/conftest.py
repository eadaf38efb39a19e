"""What the tests of fine-tuning start from."""

from __future__ import annotations

import pytest
import toy
from finetuning import write_starts


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    return toy.tokenizer(tmp_path_factory.mktemp("finetune-vocabulary"))


@pytest.fixture(scope="session")
def folders(tokens, tmp_path_factory):
    """A start checkpoint and a training file of either kind, by name: `dual`, `dual.tsv`, and so on."""
    return write_starts(tmp_path_factory.mktemp("finetune"), tokens)
