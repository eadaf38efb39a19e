"""Dual encoders of two towers, which the other libraries hold as two models."""

from pathlib import Path

from rocketqa_paddle.networks.encoders import DUAL, Checkpoint, describe, restore
from rocketqa_paddle.networks.parameters import to_arrays

SIDES = ("query", "passage")


def split_towers(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """Return a dual encoder of two towers as two dual encoders of one tower, by their `SIDES`."""
    return {side: _one_tower(checkpoint, side) for side in SIDES}


def _one_tower(checkpoint: Checkpoint, side: str) -> Checkpoint:
    arrays = {f"query.{name}": a for name, a in to_arrays(getattr(checkpoint.network, side)).items()}
    description = {**describe(checkpoint.network), "shared": True}
    network = restore(description, checkpoint.network.config, arrays, side)
    return Checkpoint(network, checkpoint.tokenizer, dict.fromkeys(SIDES, checkpoint.lengths[side]))


def join_towers(query: Checkpoint, passage: Checkpoint, source: Path) -> Checkpoint:
    """Return the dual encoder of two towers that `split_towers` took apart.

    Raises:
        ValueError: one of them is not a dual encoder of one tower, or they differ in their settings.
    """
    _check_towers(query, passage, source)
    arrays = to_arrays(query.network)
    arrays |= {f"passage.{name}": a for name, a in to_arrays(passage.network.query).items()}
    network = restore({**describe(passage.network), "shared": False}, passage.network.config, arrays, source)
    lengths = {"query": query.lengths["query"], "passage": passage.lengths["passage"]}
    return Checkpoint(network, passage.tokenizer, lengths)


def _check_towers(query: Checkpoint, passage: Checkpoint, source: Path) -> None:
    for side, tower in zip(SIDES, (query, passage), strict=True):
        if tower.kind != DUAL or not tower.network.shared:
            raise ValueError(f"{source / side}: expected an encoder of one tower")
    one, other = _settings(query), _settings(passage)
    if differ := [name for name in one if one[name] != other[name]]:
        raise ValueError(f"{source}: query and passage encoder have other {' and '.join(differ)}")


def _settings(tower: Checkpoint) -> dict[str, object]:
    return {
        "sizes": tower.network.config,
        "pooling": describe(tower.network),
        "vocabularies": tower.tokenizer.vocabulary,
        "tokenizer settings": tower.tokenizer.settings,
    }
