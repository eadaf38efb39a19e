"""What the tests of checkpoints share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import foreign
import pytest
import toy

from rocketqa_paddle import checkpoints
from rocketqa_paddle.networks.tokenization import Tokenizer


@pytest.fixture(scope="package", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Do not wait for the disk after each of the many models that are written here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def words(vocab: Path) -> list[str]:
    """A vocabulary with capital letters."""
    return foreign.widened(vocab)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A checkpoint folder of a dual encoder of two towers."""
    checkpoints.save(toy.dual(tokenizer), tmp_path / "saved")
    return tmp_path / "saved"
