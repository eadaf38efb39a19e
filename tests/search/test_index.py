"""The vector index: exact search, and folders that open only with what made them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import toy

from rocketqa_paddle.search import index as index_file
from rocketqa_paddle.search.index import VectorIndex
from rocketqa_paddle.search.vectors import Vectors
from rocketqa_paddle.settings import IndexSettings

IDS = [f"p{i}" for i in range(20)]


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    VectorIndex(vectors, IDS, model="made-me").save(tmp_path)
    return tmp_path


# Search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 20])
def test_search_is_exact(vectors: np.ndarray, k: int) -> None:
    queries = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    scores, rows = VectorIndex(vectors, IDS).search(queries, k)
    products = queries @ vectors.T
    best = np.argsort(-products, axis=1)[:, :k]
    np.testing.assert_array_equal(rows, best)
    np.testing.assert_allclose(scores, np.take_along_axis(products, best, axis=1), rtol=1e-5)


def test_search_for_more_than_there_are_gives_all(vectors: np.ndarray) -> None:
    scores, rows = VectorIndex(vectors, IDS).search(vectors[:2], 50)
    assert scores.shape == rows.shape == (2, 20)
    assert sorted(rows[0]) == list(range(20))


def test_more_queries_than_are_searched_together(
    vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = VectorIndex(vectors, IDS)
    expected = index.search(vectors, 3)
    for size in (1, 7, 10, 20):
        monkeypatch.setattr(index_file, "_QUERY_BLOCK", size)
        for given, whole in zip(index.search(vectors, 3), expected, strict=True):
            np.testing.assert_allclose(given, whole, rtol=1e-6)


def test_no_queries_have_no_hits(vectors: np.ndarray) -> None:
    scores, rows = VectorIndex(vectors, IDS).search(vectors[:0], 3)
    assert scores.shape == rows.shape == (0, 3)


def test_any_float_array_in_any_memory_order_is_indexed(vectors: np.ndarray) -> None:
    expected = VectorIndex(vectors, IDS).search(vectors, 3)[1]
    for given in (vectors.astype(np.float64), np.asfortranarray(vectors), vectors.repeat(2, axis=0)[::2]):
        np.testing.assert_array_equal(VectorIndex(given, IDS).search(given, 3)[1], expected)


def test_queries_of_another_dimension_are_refused(vectors: np.ndarray) -> None:
    index = VectorIndex(vectors, IDS)
    assert (len(index), index.dimension) == (20, 8)
    with pytest.raises(ValueError, match="queries have 9 dimensions, the index 8"):
        index.search(np.zeros((1, 9), np.float32), 3)


def test_an_index_needs_a_vector_for_every_id_and_one_at_least(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="20 vectors for 19 passage ids"):
        VectorIndex(vectors, IDS[:-1])
    with pytest.raises(ValueError, match="an index needs at least one passage"):
        VectorIndex(vectors[:0], [])


def test_vectors_of_nan_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not a number|NaN|nan"):
        VectorIndex(vectors, IDS).search(np.full((1, 8), np.nan, np.float32), 3)


@pytest.mark.parametrize("parts", [1, 3, 20])
def test_parts_and_ties_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Of equal scores the lower row comes first, whatever is computed together."""
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((4, 24)).astype(np.float32)[rng.integers(0, 4, 300)]
    queries = rng.standard_normal((40, 24)).astype(np.float32)
    products = np.einsum("qd,nd->qn", queries, vectors)
    expected = np.lexsort((np.broadcast_to(np.arange(300), products.shape), -products))[:, :90]
    monkeypatch.setattr(index_file, "_ROW_BLOCK", 64)
    index = VectorIndex(Vectors(np.array_split(vectors, parts)), range(300))
    for given in (queries, queries[:1]):
        np.testing.assert_array_equal(index.search(given, 90)[1], expected[: len(given)])


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,Flat", "SQfp16", "PCA16,Flat", "IVF4,PQ4x4"])
def test_an_approximate_index_scores_by_the_vectors(tmp_path: Path, factory: str) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((400, 32)).astype(np.float32)
    parameters = "nprobe=4" if factory.startswith("IVF") else ""
    settings = IndexSettings(factory, parameters, candidates=400)
    index = VectorIndex(vectors, [f"p{i}" for i in range(400)], "m", settings=settings)
    index.save(tmp_path)
    exact = VectorIndex(vectors, range(400)).search(vectors[:30], 5)
    again = VectorIndex.load(tmp_path, "m")
    assert again.settings == settings
    for found in (index.search(vectors[:30], 5), again.search(vectors[:30], 5)):
        if factory != "HNSW8":  # which may miss one, though it is asked for all
            np.testing.assert_array_equal(found[1], exact[1])
        same = found[1] == exact[1]
        assert same.mean() > 0.9
        np.testing.assert_array_equal(found[0][same], exact[0][same])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "IVF4,Flatt"}, "factory 'IVF4,Flatt': faiss knows no such index of 32 dimensions"),
        ({"factory": "PQ5"}, "factory 'PQ5'"),
        ({"factory": "HNSW8", "parameters": "nprobe=4"}, "parameters 'nprobe=4' do not fit an index 'HNSW8'"),
        ({"factory": "IVF4,Flat", "parameters": "nprobe"}, "parameters 'nprobe' do not fit"),
    ],
)
def test_an_index_that_faiss_does_not_know_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_file.check_factory(IndexSettings(**settings), 32)


def test_an_index_that_cannot_learn_from_so_few_vectors_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot make such an index of 20 vectors of 8 dimensions"):
        VectorIndex(vectors, IDS, settings=IndexSettings("IVF64,Flat"))


def test_more_lists_than_passages_are_told_before_any_vector() -> None:
    for factory in ("IVF64,Flat", "IVF64,PQ4x4", "PCA4,IVF64,Flat", "IVF64,Flat,RFlat"):
        with pytest.raises(ValueError, match="such an index of 63 vectors of 8 dimensions .it has 64 lists"):
            index_file.check_size(IndexSettings(factory), 8, 63)
        index_file.check_size(IndexSettings(factory), 8, 64)
    for factory in ("Flat", "HNSW8", "SQfp16"):
        index_file.check_size(IndexSettings(factory), 8, 1)


def test_fewer_passages_than_a_quantiser_has_centroids_are_told_before_any_vector() -> None:
    """Of one passage less, faiss makes none either."""
    for factory, least in {
        "PQ4": 256,
        "PQ4x4": 16,
        "PQ4x4fs": 16,
        "IVF8,PQ4": 256,
        "OPQ4,IVF8,PQ4x4": 256,
        "HNSW8_PQ4": 256,
        "IVF8,PQ4x4fs,Refine(PQ4)": 256,
    }.items():
        settings, made = IndexSettings(factory), np.random.default_rng(0).standard_normal((least, 8))
        with pytest.raises(ValueError, match=f"{least - 1} vectors .*Q has {least} centroids"):
            index_file.check_size(settings, 8, least - 1)
        with pytest.raises(ValueError, match="cannot make such an index"):
            VectorIndex(made[1:], range(least - 1), settings=settings)
        index_file.check_size(settings, 8, least)
        if least == 16:  # more takes seconds
            VectorIndex(made, range(least), settings=settings)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Give faiss the functions of its version for GPUs; collect the GPU and the kind of every index."""
    copied: list[tuple[int, str]] = []

    def to_gpu(resources: object, gpu: int, index: faiss.Index) -> faiss.Index:
        if not isinstance(index, faiss.IndexIVF):
            raise RuntimeError("Error in clone_Index at GpuCloner.cpp: Error: not implemented on GPU.")
        copied.append((gpu, type(index).__name__))
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "GpuIndexFlatIP", faiss.IndexFlatIP, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    return copied


def test_a_gpu_searches_the_kinds_that_faiss_has_there(vectors, gpus) -> None:
    settings = IndexSettings("IVF2,Flat", "nprobe=2")
    expected, index = VectorIndex(vectors, IDS).search(vectors, 5), VectorIndex(vectors, IDS, "", 3, settings)
    assert gpus == [(3, "IndexIVFFlat")]
    index._approximate = None  # so that the copy is what searches
    np.testing.assert_array_equal(index.search(vectors, 5)[1], expected[1])


def test_an_index_that_no_gpu_has_is_searched_on_the_cpu_and_says_so(vectors, gpus) -> None:
    with pytest.warns(UserWarning, match="faiss searches HNSW8 on the CPU, not on the GPU .not implemented"):
        index = VectorIndex(vectors, IDS, gpu=0, settings=IndexSettings("HNSW8"))
    assert not gpus and len(index.search(vectors, 5)[1]) == 20


def test_more_candidates_than_a_gpu_finds_are_found_on_the_cpu(vectors, gpus, monkeypatch) -> None:
    index = VectorIndex(vectors, IDS, gpu=0, settings=IndexSettings("IVF2,Flat", "nprobe=2"))
    monkeypatch.setattr(index_file, "_GPU_DEPTH", 12)
    index._on_gpu = _Refusing()
    assert index.search(vectors, 5)[1].shape == (20, 5)
    with pytest.raises(NotImplementedError):
        index.search(vectors, 4)


class _Refusing:
    def search(self, queries: np.ndarray, k: int) -> None:
        raise NotImplementedError


def test_parameters_without_an_approximate_index_are_refused() -> None:
    with pytest.raises(ValueError, match="are for an approximate index: choose a factory"):
        IndexSettings(parameters="nprobe=4")


# Folders ----------------------------------------------------------------------------------------


def test_a_saved_index_searches_the_same(folder: Path, vectors: np.ndarray) -> None:
    loaded = VectorIndex.load(folder, "made-me")
    assert (loaded.ids, loaded.model, loaded.dimension, len(loaded)) == (IDS, "made-me", 8, 20)
    for given, expected in zip(
        loaded.search(vectors, 4), VectorIndex(vectors, IDS).search(vectors, 4), strict=True
    ):
        np.testing.assert_array_equal(given, expected)


def test_what_the_folder_holds(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"vectors.npy", "ids.txt", "meta.json"}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta.pop("content").keys() == {"every", "fingerprint"}
    assert meta == {
        "format_version": 3,
        "dimension": 8,
        "metric": "inner_product",
        "count": 20,
        "model": "made-me",
    }


def test_ids_of_any_script_and_with_spaces_come_back(tmp_path: Path) -> None:
    ids = ["a b", " padded ", "检索", "é", "a\tb", "https://x.org/#1", ""]
    VectorIndex(np.eye(7, dtype=np.float32), ids).save(tmp_path)
    assert VectorIndex.load(tmp_path).ids == ids


@pytest.mark.parametrize("odd", ["a\x0bb", "a\x85b", "a\u2028b", "a\x1cb"])
def test_ids_with_unusual_separators_come_back(tmp_path: Path, odd: str) -> None:
    VectorIndex(np.eye(2, dtype=np.float32), [odd, "c"]).save(tmp_path)
    assert VectorIndex.load(tmp_path).ids == [odd, "c"]


def as_before(folder: Path, other: faiss.Index, version: int = 2) -> None:
    """Make the folder one of an older version, which kept the vectors in faiss's file."""
    faiss.write_index(other, str(folder / "index.faiss"))
    (folder / "vectors.npy").unlink()
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format_version": version}))


def flat(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_an_older_version_is_read(folder: Path, vectors: np.ndarray, version: int) -> None:
    expected = VectorIndex.load(folder).search(vectors, 4)
    as_before(folder, flat(vectors), version)
    loaded = VectorIndex.load(folder, "made-me")
    np.testing.assert_array_equal(loaded.vectors(0, 20), vectors)
    np.testing.assert_array_equal(loaded.search(vectors, 4), expected)


@pytest.mark.parametrize("kind", ["IndexFlatL2(8)", "IndexHNSWFlat(8, 4)", "IndexFlat(8, 4)"])
def test_an_index_of_another_kind_or_metric_is_refused(folder: Path, vectors: np.ndarray, kind: str) -> None:
    other = eval(f"faiss.{kind}")
    other.add(vectors)
    as_before(folder, other)
    with pytest.raises(
        ValueError, match=r"index.faiss: a IndexH?.* expected an IndexFlat of the inner product"
    ):
        VectorIndex.load(folder)


def damaged(folder: Path, vectors: np.ndarray, value: float) -> None:
    """Write an index in which one number of row 13 is not finite, as `VectorIndex` does not."""
    other = np.where(np.arange(160).reshape(20, 8) == 13 * 8 + 3, value, vectors).astype(np.float32)
    np.save(folder / "vectors.npy", other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_of_nan_are_refused_when_they_are_opened(folder: Path, vectors: np.ndarray, value) -> None:
    damaged(folder, vectors, value)
    with pytest.raises(ValueError, match="vectors.npy holds NaN or infinity: build the index again"):
        VectorIndex.load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_of_nan_are_refused_where_not_all_vectors_are_looked_at(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(index_file, "_SAMPLED_ROWS", 7)  # every third row, which row 13 is not
    damaged(folder, vectors, value)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "content"}))
    index = VectorIndex.load(folder)
    with pytest.raises(ValueError, match="the index holds NaN or infinity: it is damaged"):
        index.search(np.abs(vectors), 20)


def test_a_loaded_index_can_be_saved_where_it_came_from(folder: Path, vectors: np.ndarray) -> None:
    VectorIndex.load(folder).save(folder)
    again = VectorIndex.load(folder, "made-me")
    np.testing.assert_array_equal(again.vectors(0, 20), vectors)
    assert {path.name for path in folder.iterdir()} == {"vectors.npy", "ids.txt", "meta.json"}


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="not Linux")
def test_vectors_are_mapped_from_the_file(tmp_path: Path) -> None:
    """So that all processes of a machine share them."""
    vectors = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    VectorIndex(vectors, [f"p{i}" for i in range(1000)]).save(tmp_path)
    index = VectorIndex.load(tmp_path)
    assert str(tmp_path / "vectors.npy") in Path("/proc/self/maps").read_text()
    np.testing.assert_array_equal(index.vectors(990, 10), vectors[990:])


def test_an_index_is_read_where_it_cannot_be_mapped(folder: Path, vectors: np.ndarray, monkeypatch) -> None:
    as_before(folder, flat(vectors))
    read = faiss.read_index

    def without_mapping(path: str, flag: int) -> faiss.Index:
        if flag:
            raise RuntimeError("could not mmap()")
        return read(path, flag)

    monkeypatch.setattr(faiss, "read_index", without_mapping)
    np.testing.assert_array_equal(VectorIndex.load(folder).vectors(0, 20), vectors)


def test_another_model_is_refused_and_no_model_is_not_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="made by model made-me, but the checkpoint is other"):
        VectorIndex.load(folder, "other")
    assert len(VectorIndex.load(folder)) == 20


@pytest.mark.parametrize("name", ["vectors.npy", "ids.txt", "meta.json"])
def test_a_folder_without_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: not there; make an index"):
        VectorIndex.load(folder)


def test_a_folder_that_disagrees_with_itself_is_refused(folder: Path) -> None:
    (folder / "ids.txt").write_text("".join(f"{i}\n" for i in IDS[:-1]))
    with pytest.raises(ValueError, match="20 vectors and 19 ids .*the folder is damaged"):
        VectorIndex.load(folder)
    (folder / "ids.txt").write_text("".join(f"{i}\n" for i in IDS))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "count": 21}))
    with pytest.raises(ValueError, match="'count': 21, .*20 vectors and 20 ids"):
        VectorIndex.load(folder)


@pytest.mark.parametrize("name, text", [("vectors.npy", "cut off"), ("meta.json", "{"), ("meta.json", "{}")])
def test_a_damaged_file_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=str(folder)):
        VectorIndex.load(folder, "made-me")


def test_a_file_that_is_cut_off_is_named(folder: Path) -> None:
    path = folder / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="vectors.npy is damaged, build the index again"):
        VectorIndex.load(folder, "made-me")


@pytest.mark.parametrize(
    "change", [{"format_version": 4}, {"format_version": [2]}, {"dimension": 9}, {"metric": "l2"}]
)
def test_a_meta_json_that_does_not_fit_is_refused(folder: Path, change: dict) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(ValueError, match=str(folder)):
        VectorIndex.load(folder)


LIMITED = """
import resource
import numpy as np
from pathlib import Path
from rocketqa_paddle.runtime.folders import replacing
from rocketqa_paddle.search.index import CONTENTS, VectorIndex
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with replacing("index", CONTENTS) as new:
        VectorIndex(np.ones((100, 64), np.float32), [str(i) for i in range(100)]).save(new)
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for it."""
    done = toy.run(sys.executable, "-c", LIMITED, cwd=tmp_path)
    assert "vectors.npy: could not be written (" in done.stdout, done.stderr
    assert "write elsewhere, or make room" in done.stdout
    assert list(tmp_path.iterdir()) == []
