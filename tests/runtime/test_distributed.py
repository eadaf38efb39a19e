"""Two processes on two nodes, started as users start them, do what one does."""

from __future__ import annotations

import json

import distributed_worker
import numpy as np
import pytest
import ranks

from rocketqa_paddle.data.store import PassageTexts
from rocketqa_paddle.runtime import distributed, meeting
from rocketqa_paddle.runtime.meeting import LostRank
from rocketqa_paddle.search.index import VectorIndex

# They add the same to all scores of a softmax: their gradient is rounding alone, which Adam scales to a step.
NO_GRADIENT = (
    "key.bias",
    "retriever.passage.layers.1.ffn_norm.bias",
    "reranker.ernie.layers.1.ffn_norm.bias",
    "reranker.output.bias",
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What this one process computes."""
    folder = tmp_path_factory.mktemp("one")
    found, arrays = distributed_worker.work(folder)
    return folder, json.loads(json.dumps(found)), arrays


@pytest.fixture(scope="module")
def two(two_ranks):
    """What each of two ranks computes."""
    found = [json.loads((two_ranks / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return two_ranks, found, [np.load(two_ranks / f"rank-{rank}.npz") for rank in range(2)]


def test_one_process_needs_no_others():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather("x") == ["x"]
    assert list(distributed.shard([1, 2, 3])) == [1, 2, 3]
    distributed.init()
    distributed.barrier()
    distributed.average_gradients([])
    distributed.broadcast_parameters([])


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8, 97])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shards_cover_everything_evenly(monkeypatch, count, ranks):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(list(distributed.shard(range(count))))
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_two_ranks_shard_and_gather(two):
    _, found, _ = two
    assert [rank["rank"] for rank in found] == [[0, 2, True], [1, 2, False]]
    assert found[0]["shards"] == found[1]["shards"]
    for count, parts in enumerate(found[0]["shards"]):
        assert len(parts) == 2
        assert [item for part in parts for item in part] == list(range(count))
    expected = [{"rank": 0, "text": ""}, {"rank": 1, "text": "π" * 1000}]  # of unequal size
    assert found[0]["gathered"] == found[1]["gathered"] == expected


@pytest.mark.parametrize("name", ["search", "loaded search", "rerank", "small search", "small rerank"])
def test_two_ranks_find_what_one_finds(one, two, name):
    expected = one[1][name]
    assert sum(map(len, expected.values())) > 0
    for found in two[1]:
        assert list(found[name]) == list(expected)
        for query, hits in expected.items():
            assert [hit[:2] for hit in found[name][query]] == [hit[:2] for hit in hits], query
            scores = [[hit[2] for hit in side] for side in (found[name][query], hits)]
            np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["index", "small"])
def test_two_ranks_save_one_whole_index(one, two, name):
    single, double = (VectorIndex.load(result[0] / name, "0123") for result in (one, two))
    assert double.ids == single.ids
    everything = np.eye(16, dtype=np.float32)
    np.testing.assert_allclose(
        double.search(everything, 60)[0], single.search(everything, 60)[0], rtol=1e-4, atol=1e-4
    )
    assert list(PassageTexts(two[0] / name, double.ids)) == list(PassageTexts(one[0] / name, single.ids))


def test_gradients_are_averaged_and_a_missing_one_counts_as_zero(two):
    for arrays in two[2]:
        assert np.array_equal(arrays["gradient.first"], np.full((2, 3), 2.0))
        assert np.array_equal(arrays["gradient.second"], np.arange(4.0))


def test_every_rank_starts_from_the_parameters_of_rank_0(one, two):
    names = [name for name in one[2] if name.startswith("before.")]
    assert len(names) > 90
    for arrays in two[2]:
        for name in names:
            assert np.array_equal(arrays[name], one[2][name]), name


def test_two_ranks_train_as_one_with_twice_the_batch(one, two):
    ranks = two[2]
    moved = 0
    for name, expected in one[2].items():
        if not name.startswith("after."):
            continue
        assert np.array_equal(ranks[0][name], ranks[1][name]), name
        if name.endswith(NO_GRADIENT):
            continue
        tolerance = 1e-6 + 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(ranks[0][name], expected, rtol=0, atol=tolerance, err_msg=name)
        moved += np.abs(expected - one[2][name.replace("after.", "before.")]).max() > 1e-4
    assert moved > 80


def test_ranks_share_the_batches_of_a_sampler(one, two):
    """Each has its part of a batch, in rank order."""
    parts = [found["batches"] for found in two[1]]
    assert [first + second for first, second in zip(*parts, strict=True)] == one[1]["batches"]
    assert all(len(part) == 3 for rank in parts for part in rank)
    whole = one[1]["batches"]
    assert whole[::2] == whole[1::2] != whole[:4]


def test_only_rank_0_writes(one, two):
    folder = two[0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 8]
    expected = [json.loads(line) for line in (one[0] / "metrics.jsonl").read_text().splitlines()]
    for row, other in zip(rows, expected, strict=True):
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    assert json.loads((folder / "last" / "state.json").read_text())["step"] == 8


def test_a_rank_that_was_killed_is_named_on_the_other_node(tmp_path):
    """The other one ends, instead of a traceback of the transport or a wait for ever."""
    done = ranks.launch_nodes(tmp_path, "lost_rank_worker.py", tmp_path)
    assert all(node.returncode != 0 for node in done)
    told = (tmp_path / "log-0" / "workerlog.0").read_text()
    assert "rocketqa: rank 1 of 2 has ended or was killed, so rank 0 ends as well" in told
    assert "the same command goes on from what was saved" in told
    assert "Traceback" not in told
    assert (tmp_path / "code").read_text() == "1"


def test_other_errors_are_not_taken_for_a_lost_rank(monkeypatch):
    error = RuntimeError("[/paddle/third_party/gloo/gloo/transport/tcp/pair.cc:576] Read error")
    assert distributed.told_of_lost_ranks(error) is None  # one process has no others
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.told_of_lost_ranks(RuntimeError("shapes differ")) is None
    assert distributed.told_of_lost_ranks(error) is None  # all are there

    def lose() -> None:
        raise LostRank("rank 1 of 2 has ended")

    monkeypatch.setattr(meeting, "wait_for_all", lose)
    told = "rank 1 of 2 has ended, so rank 0 ends as well"
    assert distributed.told_of_lost_ranks(error) == told
    assert distributed.told_of_lost_ranks(LostRank("rank 1 of 2 has ended")) == told
