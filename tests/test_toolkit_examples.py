"""What the RocketQA toolkit's README, example.py and Faiss example do, with one changed import.

They train and use tiny models in the toolkit's format, on the toolkit's own example files where they are at
hand and on made files of the same shapes always.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import pytest

import rocketqa_paddle as rocketqa
from rocketqa_paddle.checkpoints.formats import reference
from rocketqa_paddle.data.groups import read_dual, with_other_positives, without_false_negatives
from rocketqa_paddle.networks.encoders import Checkpoint, CrossEncoder, DualEncoder
from rocketqa_paddle.networks.ernie import ErnieConfig
from rocketqa_paddle.networks.tokenization import SPECIAL_TOKENS, Tokenizer
from rocketqa_paddle.toolkit import CrossModel, DualModel

SHARED = Path(__file__).parents[2] / "shared" / "data" / "rocketqa_examples"
WORDS = ("微信", "苹果", "北京", "天气", "法定节日", "高铁", "牛奶", "app", "QQ 号", "( )", "1999年")


class Data(NamedTuple):
    """The toolkit's example files, and a tiny model of either kind in its format."""

    files: Path
    models: Path


def write(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def make_files(folder: Path) -> Path:
    """Write files like the toolkit's: columns, titles that are empty or `-`, labels, a last line unended."""
    folder.mkdir(parents=True)
    queries = [f"{WORDS[i % 11]} 的 {WORDS[(i * 3 + 1) % 11]} 是什么?" for i in range(40)]
    texts = [
        f"{query.replace('是什么?', '')}：“{WORDS[(i + 5) % 11]}”。" * 4 for i, query in enumerate(queries)
    ]
    titles = [("", "-", WORDS[i % 11])[i % 3] for i in range(40)]
    pairs = [(i, (i + 7) % 40) for i in range(40)]
    write(
        folder / "dual.train.tsv",
        [(queries[i], titles[i], texts[i], titles[j], texts[j], "0") for i, j in pairs],
    )
    write(
        folder / "cross.train.tsv",
        [(queries[i], titles[k], texts[k], str(int(k == i))) for i, j in pairs for k in (i, j)],
    )
    write(folder / "dureader.q", [(query, "-", "-", "0") for query in queries[:20]])
    write(folder / "dureader.para", list(zip(titles, texts, strict=True)))
    write(folder / "marco.q", [(f"what is number {i}",) for i in range(10)])
    write(folder / "marco.tp.1k", [(("-", "Number")[i % 2], f"Number {i} is {i}…") for i in range(30)])
    unended = folder / "dureader.q"
    unended.write_text(unended.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    return folder


def make_models(folder: Path, files: Path) -> Path:
    """`de/config.json` and `ce/config.json`, whose vocabulary is the characters of the files."""
    folder.mkdir()
    characters = sorted({c for path in files.iterdir() for c in path.read_text(encoding="utf-8").lower()})
    pieces = [c for c in characters if not c.isspace()]
    vocabulary = [*SPECIAL_TOKENS, *pieces, *(f"##{c}" for c in pieces if c.isascii() and c.isalnum())]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(folder / "vocab.txt", for_cn=True)
    sizes = ErnieConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        ffn_size=64,
        max_positions=64,
        sent_types=2,
        activation="relu",
        initializer_range=0.3,
    )
    paddle.seed(7)
    dual = Checkpoint(DualEncoder(sizes), tokenizer, {"query": 16, "passage": 48})
    cross = Checkpoint(CrossEncoder(sizes, head="classes"), tokenizer, {"pair": 56})
    reference.write(dual, folder / "de")
    reference.write(cross, folder / "ce")
    return folder


@pytest.fixture(scope="module", params=["made", "toolkit"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    if request.param == "toolkit" and not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    folder = tmp_path_factory.mktemp("toolkit")
    files = SHARED if request.param == "toolkit" else make_files(folder / "data")
    return Data(files, make_models(folder / "models", files))


def read_queries(path: Path) -> list[str]:
    """Whole lines, as the toolkit's example reads them."""
    return [line.strip() for line in path.open(encoding="utf-8")]


def read_passages(path: Path) -> tuple[list[str], list[str]]:
    """Titles and texts."""
    rows = [line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8")]
    titles, texts = zip(*rows, strict=True)
    return list(titles), list(texts)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# example.py ---------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A folder with what the training half of the example leaves, and the trained models' answers."""

    folder: Path
    vectors: np.ndarray
    scores: np.ndarray


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    before = snapshot(data.models)
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the example's folders are relative
        base, file = str(data.models / "de" / "config.json"), str(data.files / "dual.train.tsv")
        retriever = rocketqa.load_model(model=base, use_cuda=False, device_id=0, batch_size=16)
        retriever.train(file, 2, "de_models", save_steps=10, learning_rate=1e-5, log_folder="de_log")
        base, file = str(data.models / "ce" / "config.json"), str(data.files / "cross.train.tsv")
        reranker = rocketqa.load_model(model=base, use_cuda=False, device_id=0, batch_size=16)
        reranker.train(file, 2, "ce_models", save_steps=10, learning_rate=1e-5, log_folder="ce_log")
    assert snapshot(data.models) == before
    titles, texts = read_passages(data.files / "dureader.para")
    queries = [line.split("\t")[0] for line in read_queries(data.files / "dureader.q")][:20]
    yield Trained(
        folder,
        retriever.encode_para(texts[:20], titles[:20]),
        reranker.matching(queries, texts[:20], titles[:20]),
    )


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def trained_on(file: Path, kind: str) -> int:
    """The number of lines without those whose negative is a positive of the query."""
    if kind == "cross":
        return lines_of(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return len([*without_false_negatives(file, with_other_positives([*read_dual(file)]))])


@pytest.mark.parametrize("kind", ["dual", "cross"])
def test_training_leaves_the_examples_folders(data: Data, trained: Trained, kind: str) -> None:
    short = {"dual": "de", "cross": "ce"}[kind]
    last = -(-2 * trained_on(data.files / f"{kind}.train.tsv", kind) // 16)
    expected = {*range(10, last + 1, 10), last}
    output = trained.folder / f"{short}_models"
    assert {path.name for path in output.iterdir()} == {"config.json", *(f"step_{n}" for n in expected)}
    rows = [json.loads(line) for line in (trained.folder / f"{short}_log" / "log.train").open()]
    assert [rows[0]["step"], rows[-1]["step"]] == [1, last]
    assert rows[0]["learning_rate"] == pytest.approx(1e-5)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert {path.name for path in trained.folder.iterdir()} == {"de_models", "de_log", "ce_models", "ce_log"}


@pytest.mark.parametrize("given", ["step", "step/config.json", "", "config.json"])
def test_a_trained_model_is_used_as_in_the_example(
    data: Data, trained: Trained, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encoded, matched and printed, in loops over what comes back."""

    def saved(folder: str) -> str:
        steps = sorted((trained.folder / folder).glob("step_*"), key=lambda path: int(path.name[5:]))
        return str(trained.folder / folder / given.replace("step", steps[-1].name))

    queries = read_queries(data.files / "dureader.q")[:20]
    titles, texts = read_passages(data.files / "dureader.para")
    retriever = rocketqa.load_model(model=saved("de_models"), use_cuda=False, device_id=0, batch_size=16)
    reranker = rocketqa.load_model(model=saved("ce_models"), use_cuda=False, device_id=0, batch_size=16)
    assert isinstance(retriever, DualModel) and isinstance(reranker, CrossModel)

    with pytest.warns(UserWarning, match=f"{len(queries)} queries hold a tab"):
        query_vectors = retriever.encode_query(query=queries)
    para_vectors = retriever.encode_para(para=texts[:20], title=titles[:20])
    with pytest.warns(UserWarning, match="hold a tab"):
        products = retriever.matching(query=queries, para=texts[:20], title=titles[:20])
    with pytest.warns(UserWarning, match="hold a tab"):
        scores = reranker.matching(query=queries, para=texts[:20], title=titles[:20])
    np.testing.assert_array_equal(para_vectors, trained.vectors)
    np.testing.assert_array_equal(scores, trained.scores)

    capsys.readouterr()
    for vector in query_vectors:
        print(" ".join(str(number) for number in vector))
    for vector in para_vectors:
        print(" ".join(str(number) for number in vector))
    for product in products:
        print(product)
    for score in scores:
        print(score)
    printed = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 80
    np.testing.assert_allclose(printed[:20], query_vectors, rtol=1e-6)
    np.testing.assert_allclose(printed[20:40], para_vectors, rtol=1e-6)
    np.testing.assert_allclose(printed[40:60], (query_vectors * para_vectors).sum(axis=1)[:, None], rtol=1e-4)
    np.testing.assert_allclose(printed[60:], scores[:, None], rtol=1e-6)
    assert ((scores > 0) & (scores < 1)).all()


def test_training_changes_what_the_models_answer(data: Data, trained: Trained) -> None:
    titles, texts = read_passages(data.files / "dureader.para")
    start = rocketqa.load_model(str(data.models / "de" / "config.json"), batch_size=16)
    difference = np.abs(start.encode_para(texts[:20], titles[:20]) - trained.vectors).max()
    assert 1e-6 < difference < 0.1  # a few steps at 1e-5


def test_published_looking_files_of_other_words_are_encoded_too(data: Data) -> None:
    """`marco.q` and `marco.tp.1k`, in English, as the example gives them to any model."""
    queries = read_queries(data.files / "marco.q")
    rows = [line.strip().split("\t") for line in (data.files / "marco.tp.1k").open(encoding="utf-8")]
    titles, texts = (list(column) for column in zip(*rows, strict=True))
    retriever = rocketqa.load_model(str(data.models / "de" / "config.json"), batch_size=32)
    reranker = rocketqa.load_model(str(data.models / "ce" / "config.json"), batch_size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = retriever.encode_para(para=texts, title=titles)
        assert vectors.shape == (len(texts), 16)
        count = len(queries)
        products = retriever.matching(query=queries, para=texts[:count], title=titles[:count])
        scores = reranker.matching(query=queries, para=texts[:count], title=titles[:count])
    expected = (retriever.encode_query(queries) * vectors[:count]).sum(axis=1)
    np.testing.assert_allclose(products, expected, rtol=1e-3, atol=1e-4)
    assert len({float(score) for score in scores}) > count / 2


# Queries and titles as the files have them --------------------------------------------------------


def test_a_query_ends_at_its_first_tab(data: Data) -> None:
    lines = read_queries(data.files / "dureader.q")
    alone = [line.split("\t")[0] for line in lines]
    assert lines != alone
    titles, texts = read_passages(data.files / "dureader.para")
    texts = texts[: len(lines)]
    retriever, reranker = (rocketqa.load_model(data.models / name, batch_size=16) for name in ("de", "ce"))
    for call in (
        lambda queries: retriever.encode_query(queries),
        lambda queries: retriever.matching(queries, texts),
        lambda queries: reranker.matching(queries, texts),
    ):
        with pytest.warns(UserWarning, match=f"{len(lines)} queries hold a tab; what follows") as caught:
            given = call(lines)
        assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(given, call(alone))


def test_a_title_of_a_dash_is_read_as_it_stands(data: Data) -> None:
    """As in the toolkit, whose readers take `-` for a title like any other."""
    _, texts = read_passages(data.files / "dureader.para")
    retriever = rocketqa.load_model(data.models / "de")
    dashed, empty = (retriever.encode_para(texts[:3], [title] * 3) for title in ("-", ""))
    assert (np.abs(dashed - empty).max(axis=1) > 1e-3).all()
    np.testing.assert_array_equal(retriever.encode_para(texts[:3]), empty)


def test_spaces_do_not_count_in_a_chinese_model(data: Data, trained: Trained) -> None:
    """`for_cn`, before training and after."""
    for folder in (data.models / "de", trained.folder / "de_models"):
        retriever = rocketqa.load_model(folder)
        np.testing.assert_array_equal(
            retriever.encode_query(["牛 奶 app"]), retriever.encode_query(["牛奶app"])
        )


# The README ---------------------------------------------------------------------------------------


def test_the_published_models_have_the_toolkits_names() -> None:
    v1 = [f"v1_{corpus}_{kind}" for corpus in ("marco", "nq") for kind in ("de", "ce")]
    v2 = ["v2_marco_de", "v2_marco_ce", "v2_nq_de"]
    chinese = [f"zh_dureader_{kind}{version}" for kind in ("de", "ce") for version in ("", "_v2")]
    names = {*v1, "pair_marco_de", "pair_nq_de", *v2, *chinese}
    assert len(names) == 13
    assert set(rocketqa.available_models()) >= names


def test_vectors_and_products_of_one_query(data: Data) -> None:
    query_list, para_list = ["trigeminal definition"], ["Definition of TRIGEMINAL. : of the nerve. " * 9]
    dual_encoder = rocketqa.load_model(
        model=str(data.models / "de" / "config.json"), use_cuda=False, device_id=0, batch_size=16
    )
    q_embs = dual_encoder.encode_query(query=query_list)
    p_embs = dual_encoder.encode_para(para=para_list)
    [product] = dual_encoder.matching(query=query_list, para=para_list)
    [query], [passage] = list(q_embs), list(p_embs)
    assert query.shape == passage.shape == (16,)
    assert float(product) == pytest.approx(float(query @ passage), rel=1e-4)


@pytest.mark.parametrize("kind", ["de", "ce"])
def test_a_model_is_described_by_the_readmes_json(data: Data, kind: str, tmp_path: Path) -> None:
    """A JSON written by hand beside `zh_config.json` and `zh_vocab.txt`."""
    own = data.models / kind
    for source, target in {"ernie_config.json": "zh_config.json", "vocab.txt": "zh_vocab.txt"}.items():
        (tmp_path / target).write_bytes((own / source).read_bytes())
    (tmp_path / "step_1000").symlink_to(own / "params", target_is_directory=True)
    lengths = {"q_max_seq_len": 16, "p_max_seq_len": 48} if kind == "de" else {"max_seq_len": 56}
    values = {
        "model_type": "dual_encoder" if kind == "de" else "cross_encoder",
        **lengths,
        "model_conf_path": "zh_config.json",
        "model_vocab_path": "zh_vocab.txt",
        "model_checkpoint_path": "step_1000",
        "for_cn": True,
        "share_parameter": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(values, indent=4), encoding="utf-8")
    titles, texts = read_passages(data.files / "dureader.para")
    arguments: dict[str, Any] = {"query": texts[:5], "para": texts[:5], "title": titles[:5]}
    model, expected = (rocketqa.load_model(str(p / "config.json"), batch_size=16) for p in (tmp_path, own))
    np.testing.assert_array_equal(model.matching(**arguments), expected.matching(**arguments))


def test_a_json_by_hand_may_name_a_folder_that_train_saved(trained: Trained, tmp_path: Path) -> None:
    """As the README has it: `model_checkpoint_path` is the user's own model."""
    (tmp_path / "mine").symlink_to(trained.folder / "ce_models" / "step_10", target_is_directory=True)
    values = {"model_type": "cross_encoder", "max_seq_len": 56, "model_checkpoint_path": "mine"}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    model = rocketqa.load_model(str(tmp_path / "config.json"))
    expected = rocketqa.load_model(trained.folder / "ce_models" / "step_10")
    np.testing.assert_array_equal(
        model.matching(["牛奶"], ["苹果"]), expected.matching(query=["牛奶"], para=["苹果"])
    )


def test_a_service_searches_with_faiss_and_answers_in_json(data: Data, tmp_path: Path) -> None:
    """The Faiss example: an index of all passages, the best re-ranked, the answer sent as JSON."""
    faiss = pytest.importorskip("faiss")
    titles, texts = read_passages(data.files / "dureader.para")
    conf = {"use_cuda": False, "device_id": 0, "batch_size": 32}
    dual_encoder = rocketqa.load_model(model=str(data.models / "de" / "config.json"), **conf)
    cross_encoder = rocketqa.load_model(model=str(data.models / "ce" / "config.json"), **conf)
    para_embs = np.array(list(dual_encoder.encode_para(para=texts, title=titles)))
    indexer = faiss.IndexFlatIP(16)
    indexer.add(para_embs.astype("float32"))
    faiss.write_index(indexer, str(tmp_path / "test_index"))

    engine = faiss.read_index(str(tmp_path / "test_index"))
    query = read_queries(data.files / "dureader.q")[0].split("\t")[0]
    q_embs = np.array(list(dual_encoder.encode_query(query=[query])))
    _, [rows] = engine.search(q_embs, 5)
    products = para_embs @ q_embs[0]
    np.testing.assert_allclose(products[rows], np.sort(products)[:-6:-1], rtol=1e-5)
    scores = list(
        cross_encoder.matching(
            query=[query] * 5, para=[texts[i] for i in rows], title=[titles[i] for i in rows]
        )
    )
    best = sorted(zip(scores, rows, strict=True), reverse=True)
    answer = [{"probability": score, "title": titles[i], "para": texts[i]} for score, i in best]
    sent = json.loads(json.dumps({"error_code": 0, "answer": answer}, ensure_ascii=False))
    assert [item["probability"] for item in sent["answer"]] == pytest.approx([float(s) for s, _ in best])


def test_products_go_into_json_one_by_one(data: Data) -> None:
    """As the scores do: the toolkit gives Python's numbers."""
    products = rocketqa.load_model(data.models / "de").matching(query=["牛奶"] * 2, para=["苹果", "北京"])
    assert json.loads(json.dumps(list(products))) == pytest.approx([float(product) for product in products])
