"""Hugging Face folders: tokenizers, sentence-transformers, and what their makers' tools compute.

Nothing but the last part needs PyTorch: where transformers and sentence-transformers are installed, they load
what is written here and save what is read.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tokenizers
from foreign import (
    HF,
    KINDS,
    PAIRS,
    PASSAGES,
    QUERIES,
    TEXTS,
    TITLES,
    Model,
    check_retriever,
    close,
    dual,
    odds,
    random_model,
    read_json,
    scores,
    towers,
    vectors,
    write,
    write_json,
    write_words,
    written,
)
from reference import Sequence2
from safetensors import safe_open

import rocketqa_paddle
from rocketqa_paddle.checkpoints import convert
from rocketqa_paddle.networks import forward
from rocketqa_paddle.networks.encoders import Checkpoint, describe

AWKWARD = [
    "Café NAÏVE Ünïcödé e\u0301 o\u0308 Å",
    "北京Paris检索,稠密。㐀豈\U00020000",
    "a.b,c!d?e(f)g-h_i$j%k^l`m~n|o—p…q“r”s",
    "🙂🙂 x🙂y 👩\u200d👩\u200d👧",
    "a\x00b\x07c\u200bd\ufeffe\ufffdf\x7fg\u00adh",
    "tab\tnew\nline\r\nend\u3000wide\u00a0hard\u2028line",
    "  double  spaces ",
    "",
    " ",
    "İstanbul ıI ﬁ ǅ ß ẞ Ω ſ",
    "한국어 가각 ญี่ปุ่น हिन्दी العَرَبِية",
    "x" * 100,
    "x" * 101,
    "##a ##",
    "MiXeD CaSe",
]
"""Texts on which tokenizers differ if they differ at all."""
SPECIAL = ["a [MASK] b", "[SEP]", "x [CLS]y [PAD] [UNK]"]


def covering(texts: Iterable[str]) -> list[str]:
    """A vocabulary with every character of the texts, plain, lower-cased and decomposed: hardly an [UNK]."""
    joined = "".join(texts)
    forms = joined + joined.lower()
    forms += unicodedata.normalize("NFD", forms)
    letters = sorted({c for c in forms if c.isprintable() and not c.isspace()})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]


def tokenizer_json(path: Path, words: Sequence[str], kind: str = "WordPiece", **normalizer: object) -> None:
    values = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], "special": True} for i in range(5)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, **normalizer},
        "model": {"type": kind, "unk_token": "[UNK]", "vocab": {word: i for i, word in enumerate(words)}},
    }
    write_json(path, values)


# Reading: config and weights --------------------------------------------------------------------


def test_settings_that_a_config_leaves_out_are_those_of_transformers(tmp_path, words):
    """`BertConfig()` and `ErnieConfig()`: gelu, epsilon 1e-12, two sentence types, three tasks."""
    model = random_model(words, task_types=3)
    left_out = ("hidden_act", "layer_norm_eps", "type_vocab_size", "task_type_vocab_size")
    config = dict.fromkeys((*left_out, "position_embedding_type"))
    folder = write(tmp_path / "hf", model, HF, **config)
    check_retriever(folder, model)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"type_vocab_size": None})
    with pytest.raises(ValueError, match=r"hf/config\.json: sent_types=None"):
        convert.read(folder)


def test_norms_may_have_the_names_that_tensorflow_gave_them(tmp_path, words):
    model = random_model(words)
    folder, arrays = write(tmp_path / "hf", model, HF), HF.arrays(model, "bert.")
    for new, old in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
        arrays = {name.replace(new, old): array for name, array in arrays.items()}
    assert sum(name.endswith("gamma") for name in arrays) == 5
    HF.save(folder, arrays)
    check_retriever(folder, model)


def halved(array: np.ndarray) -> np.ndarray:
    """The bits of the bfloat16 numbers that floats are cut to: the upper half of each."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file byte by byte, with a type that NumPy may lack."""
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.parametrize("kind", ["BF16", "U16", "F16", "F64"])
def test_weights_of_other_floats_give_the_vectors_of_those_numbers(tmp_path, words, kind):
    """bfloat16 has no type in NumPy; PaddleNLP writes it as U16."""
    model = random_model(words)
    folder, arrays = write(tmp_path / "hf", model, HF), HF.arrays(model)
    if kind in ("BF16", "U16"):
        stored = {name: halved(array) for name, array in arrays.items()}
        cut = {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in model.variables.items()}
    else:
        stored = {n: a.astype({"F16": np.float16, "F64": np.float64}[kind]) for n, a in arrays.items()}
        cut = {n: a.astype(np.float16 if kind == "F16" else a.dtype) for n, a in model.variables.items()}
    write_safetensors(folder / "model.safetensors", kind, stored)
    check_retriever(folder, replace(model, variables={n: a.astype(np.float32) for n, a in cut.items()}))


@pytest.mark.parametrize("kind, size", [("F8_E4M3", 1), ("C64", 8)])
def test_weights_of_numbers_that_are_not_read_are_refused(tmp_path, words, kind, size):
    folder = write(tmp_path / "hf", random_model(words), HF)
    write_safetensors(folder / "model.safetensors", kind, {"embeddings.x": np.zeros(size, np.uint8)})
    header = (folder / "model.safetensors").read_bytes().replace(b"[%d]" % size, b"[1]")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header) - 8 - size) + header[8:])
    with pytest.raises(ValueError, match="model.safetensors: not a whole .* file of float32, float16 or bf"):
        convert.read(folder)


def test_a_safetensors_file_that_is_cut_off_is_refused(tmp_path, words):
    path = write(tmp_path / "hf", random_model(words), HF) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        convert.read(path.parent)


@pytest.mark.parametrize("missing", ["model.safetensors", "vocab.txt", "1_Pooling/config.json"])
def test_a_file_that_is_not_there_is_named(tmp_path, words, missing):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        convert.read(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_weights_in_another_file_are_named_with_what_to_do(tmp_path, words, name):
    folder = write(tmp_path / "hf", random_model(words), HF)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(FileNotFoundError) as error:
        convert.read(folder)
    assert f"there is {name}: save the model as one safetensors file first" in str(error.value)


# Reading: tokenizers ----------------------------------------------------------------------------


def test_a_tokenizer_json_is_as_good_as_a_vocabulary(tmp_path, words):
    model = random_model(words)
    folder = write(tmp_path / "hf", model, HF)
    (folder / "vocab.txt").unlink()
    tokenizer_json(folder / "tokenizer.json", words, lowercase=True, strip_accents=None)
    check_retriever(folder, model)


@pytest.mark.parametrize(
    "config, normalizer, lower",
    [
        pytest.param({"do_lower_case": False, "strip_accents": None}, None, False, id="config-cased"),
        pytest.param({"model_max_length": 512}, {"lowercase": False}, False, id="json-cased"),
        pytest.param(
            None, {"lowercase": True, "strip_accents": True, "handle_chinese_chars": True}, True, id="json"
        ),
        pytest.param({"do_lower_case": False}, {"lowercase": True}, False, id="config-wins"),
    ],
)
def test_a_folder_tells_whether_to_lower_case(tmp_path, words, config, normalizer, lower):
    model = random_model(words, lower_case=lower)
    folder = write(tmp_path / "hf", model, HF)
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    if normalizer is not None:
        tokenizer_json(folder / "tokenizer.json", words, **normalizer)
    assert np.abs(model.queries() - replace(model, lower_case=not lower).queries()).max() > 0.01
    check_retriever(folder, model)


@pytest.mark.parametrize(
    "changes, length",
    [({}, 64), ({"model_max_length": 17}, 17), ({"model_max_length": int(1e30)}, 64), ({"x": 1}, 64)],
)
def test_the_tokenizer_tells_the_length(tmp_path, words, changes, length):
    folder = write(tmp_path / "hf", random_model(words), HF)
    write_json(folder / "tokenizer_config.json", changes)
    assert convert.read(folder).lengths == {"query": length, "passage": length}


@pytest.mark.parametrize(
    "config, normalizer, problem",
    [
        ({"do_lower_case": True, "strip_accents": False}, None, "strip_accents=False with lower case True"),
        ({"do_lower_case": False, "strip_accents": True}, None, "strip_accents=True with lower case False"),
        ({}, {"lowercase": True, "strip_accents": False}, "strip_accents=False with lower case True"),
        ({}, {"lowercase": False, "strip_accents": True}, "strip_accents=True with lower case False"),
        ({"tokenize_chinese_chars": False}, None, "Han characters are not set apart"),
        ({}, {"handle_chinese_chars": False}, "Han characters are not set apart"),
        (
            {"do_lower_case": "no"},
            None,
            "/tokenizer_config.json: do_lower_case is 'no', expected true or false",
        ),
        ({"strip_accents": 1}, None, "/tokenizer_config.json: strip_accents is 1, expected true or false"),
        ({}, {"lowercase": "yes"}, "/tokenizer.json: lowercase is 'yes', expected true or false"),
    ],
)
def test_a_tokenizer_of_other_ways_is_refused(tmp_path, words, config, normalizer, problem):
    folder = write(tmp_path / "hf", random_model(words), HF)
    write_json(folder / "tokenizer_config.json", config)
    if normalizer is not None:
        tokenizer_json(folder / "tokenizer.json", words, **normalizer)
    with pytest.raises(ValueError, match=f"hf:? ?{problem}"):
        convert.read(folder)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"model": 3}, "the tokenizer is None, expected 'WordPiece' with a vocabulary"),
        ({"added_tokens": {"a": 1}}, "added_tokens is {'a': 1}, expected a list of objects"),
        (
            {"added_tokens": [{"content": "a", "id": -1}]},
            "the token 'a' has the id -1, expected a whole number",
        ),
        (
            {"added_tokens": [{"content": "a", "id": 10**10}]},
            "the token 'a' has the id 10000000000, expected",
        ),
        ({"added_tokens": [{"id": 3}]}, "added_tokens is .*, expected a list of objects"),
        ({"normalizer": [1]}, "normalizer is .1., expected an object"),
    ],
)
def test_a_wrong_value_in_a_tokenizer_json_is_named(tmp_path, words, changes, problem):
    folder = write(tmp_path / "hf", random_model(words), HF)
    (folder / "vocab.txt").unlink()
    tokenizer_json(folder / "tokenizer.json", words)
    write_json(folder / "tokenizer.json", read_json(folder / "tokenizer.json") | changes)
    with pytest.raises(ValueError, match=problem):
        convert.read(folder)


@pytest.mark.parametrize(
    "kind, normalizer, problem",
    [
        ("WordPiece", None, "normalizer"),
        ("WordPiece", {"type": "Lowercase"}, "normalizer"),
        ("WordPiece", {"type": "Sequence", "normalizers": [{"type": "NFD"}]}, "normalizer"),
        ("BPE", {}, "tokenizer.json: the tokenizer is 'BPE', expected 'WordPiece'"),
    ],
)
def test_a_tokenizer_json_that_is_not_berts_is_not_taken_for_it(tmp_path, words, kind, normalizer, problem):
    """Without a `do_lower_case`, which transformers would build BERT's normalizer from."""
    folder = write(tmp_path / "hf", random_model(words), HF)
    (folder / "vocab.txt").unlink()
    tokenizer_json(folder / "tokenizer.json", words, kind)
    write_json(folder / "tokenizer.json", read_json(folder / "tokenizer.json") | {"normalizer": normalizer})
    with pytest.raises(ValueError, match=problem):
        convert.read(folder)


# Reading: sentence-transformers -----------------------------------------------------------------

OLD_TYPES = "sentence_transformers.models.{}"
NEW_TYPES = "sentence_transformers.sentence_transformer.modules.{}"
OLD_POOLING = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def write_sentence_transformer(
    folder: Path,
    model: Model,
    pooling: Mapping[str, object],
    kinds: Sequence[str] = ("Transformer", "Pooling"),
    inside: str = "",
    types: str = OLD_TYPES,
) -> Path:
    write(folder / inside, model, HF)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else inside, "type": types.format(kind)}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


@pytest.mark.parametrize(
    "pooling, normalize, config, inside, types",
    [
        ("cls", True, {**OLD_POOLING, "pooling_mode_cls_token": True}, "", OLD_TYPES),
        ("mean", False, {**OLD_POOLING, "pooling_mode_mean_tokens": True}, "0_Transformer", OLD_TYPES),
        ("cls", False, {"embedding_dimension": 32, "pooling_mode": "cls", "x": True}, "", NEW_TYPES),
        ("mean", True, {"embedding_dimension": 32, "pooling_mode": "mean"}, "", NEW_TYPES),
    ],
    ids=["old-cls", "old-mean", "new-cls", "new-mean"],
)
def test_a_sentence_transformer_pools_as_it_says_and_reads_a_passage_as_one_text(
    tmp_path, words, pooling, normalize, config, inside, types
):
    kinds = ["Transformer", "Pooling", *(["Normalize"] * normalize)]
    model = replace(random_model(words), length=30)
    folder = write_sentence_transformer(tmp_path / "st", model, config, kinds, inside, types)
    prompts = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", prompts)
    write_json(folder / inside / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})

    loaded = rocketqa_paddle.load_model(folder, batch_size=4)
    assert convert.find(folder).format == "huggingface"
    settings = {"shared": True, "pooling": pooling, "normalize": normalize, "temperature": 1.0}
    assert describe(loaded.checkpoint.network) == {"model_type": "dual_encoder", **settings}
    assert loaded.checkpoint.lengths == {"query": 30, "passage": 30}
    close(loaded.encode_query(QUERIES), model.vectors(map(model.one, QUERIES), pooling, normalize))
    rows = [model.one(*passage) for passage in PASSAGES]
    assert max(len(ids) for ids, _ in rows) == 30
    close(loaded.encode_para(TEXTS, TITLES), model.vectors(rows, pooling, normalize))


def test_a_sentence_transformer_may_lower_case_by_its_own_setting(tmp_path, words):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False})
    assert not convert.read(folder).tokenizer.lower_case
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    assert convert.read(folder).tokenizer.lower_case


@pytest.mark.parametrize(
    "config, named",
    [
        ({"pooling_mode": "max"}, "'max'"),
        ({"pooling_mode": "lasttoken"}, "'lasttoken'"),
        ({"pooling_mode": ["cls", "mean"]}, r"\"?'?\['cls', 'mean'\]"),
        ({**OLD_POOLING, "pooling_mode_max_tokens": True}, "'max_tokens'"),
        ({**OLD_POOLING, "pooling_mode_mean_sqrt_len_tokens": True}, "'mean_sqrt_len_tokens'"),
        ({**OLD_POOLING, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"'cls\+mean'"),
        (OLD_POOLING, "''"),
    ],
)
def test_another_pooling_is_refused(tmp_path, words, config, named):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), config)
    with pytest.raises(ValueError, match=rf"1_Pooling: pooling {named}.*, expected cls or mean alone"):
        convert.read(folder)


@pytest.mark.parametrize(
    "kinds",
    [
        ["Transformer"],
        ["Transformer", "Pooling", "Dense"],
        ["Transformer", "Pooling", "Dense", "Normalize"],
        ["Transformer", "Normalize", "Pooling"],
        ["WordEmbeddings", "Pooling"],
        [],
    ],
    ids="+".join,
)
def test_other_modules_are_refused_by_name(tmp_path, words, kinds):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"}, kinds)
    with pytest.raises(ValueError) as error:
        convert.read(folder)
    assert f"modules.json: modules {kinds}, expected Transformer, Pooling" in str(error.value)


@pytest.mark.parametrize("name, cosine", [("cosine", True), ("dot", False), (None, False), ("", False)])
def test_a_sentence_transformer_without_normalize_is_compared_as_it_says(tmp_path, words, name, cosine):
    """A name that is missing ("") or null was never chosen: the vectors stay those of `encode`."""
    model = replace(random_model(words), length=30)
    folder = write_sentence_transformer(tmp_path / "st", model, {"pooling_mode": "mean"})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 30})
    config = {} if name == "" else {"similarity_fn_name": name}
    write_json(folder / "config_sentence_transformers.json", config)
    loaded = rocketqa_paddle.load_model(folder, batch_size=4)
    expected = model.vectors(map(model.one, QUERIES), "mean", cosine)
    assert cosine == np.allclose(np.linalg.norm(expected, axis=1), 1)
    close(loaded.encode_query(QUERIES), expected)

    convert.write(loaded.checkpoint, tmp_path / "again", "huggingface")
    values = read_json(tmp_path / "again" / "config_sentence_transformers.json")
    assert values["similarity_fn_name"] == ("cosine" if cosine else "dot")
    assert (tmp_path / "again" / "2_Normalize").is_dir() == cosine


@pytest.mark.parametrize("name", ["euclidean", "manhattan", 3, ["cosine"]])
def test_vectors_that_are_compared_in_another_way_are_refused(tmp_path, words, name):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": name})
    with pytest.raises(ValueError, match="config_sentence_transformers.json: similarity_fn_name is .*, exp"):
        convert.read(folder)


def test_prompts_are_refused(tmp_path, words):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    prompts = {"prompts": {"query": "query: ", "document": ""}}
    write_json(folder / "config_sentence_transformers.json", prompts)
    with pytest.raises(ValueError, match="st: prompts .*'query: '.* before the text"):
        convert.read(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}x", "[1]", '[{"type": "x"}]', '{"type": "x", "path": ""}', "[" * 100_000),
        *(
            '[{"type": 3, "path": ""}]',
            '[{"type": "x", "path": {}}]',
            '[{"type": "x", "path": "%s"}]' % ("x" * 999),
        ),
    ],
    ids=lambda text: text[:30],
)
def test_a_list_of_modules_that_is_none_is_named(tmp_path, words, text):
    folder = write_sentence_transformer(tmp_path / "st", random_model(words), {"pooling_mode": "cls"})
    (folder / "modules.json").write_text(text)
    with pytest.raises(ValueError, match="modules.json: expected a list of modules"):
        convert.read(folder)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_with_a_list_of_modules_gives_the_oracles_scores(tmp_path, words, labels):
    """As sentence-transformers 6 writes one: with a list of modules, of which the encoder is the only one."""
    model = random_model(words, labels)
    folder = write(tmp_path / "ce", model, HF, "bert.", architectures=["BertForSequenceClassification"])
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    settings = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    write_json(folder / "sentence_bert_config.json", settings)
    settings = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", settings)
    assert convert.read_encoder(folder).config.num_layers == 2
    close(scores(convert.read(folder)), model.scores())


# Writing ----------------------------------------------------------------------------------------


def fast_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """A folder's `tokenizer.json` with what transformers makes of its `tokenizer_config.json`."""
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = read_json(folder / "tokenizer_config.json")
    fast.enable_truncation(config["model_max_length"])
    fast.add_special_tokens([value for name, value in config.items() if name.endswith("_token")])
    fast.encode_special_tokens = config.get("split_special_tokens", False)
    return fast


def rows_of(folder: Path, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Sequence2]:
    return [(encoding.ids, encoding.type_ids) for encoding in fast_tokenizer(folder).encode_batch(texts)]


def passages_there(checkpoint: Checkpoint) -> list[str] | list[tuple[str, str]]:
    """Passages as the other library is to be given them."""
    return [" ".join(pair) for pair in PASSAGES] if checkpoint.tokenizer.one_segment else PASSAGES


def pairs_there(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Queries and passages, as above. `for_cn` would let a space between title and text vanish."""
    space = "\n" if checkpoint.tokenizer.for_cn else " "
    return [(query, f"{title}{space}{text}") for query, title, text in PAIRS]


@pytest.fixture(scope="module")
def exported(words, tmp_path_factory):
    """By kind, a checkpoint and the folder that it was written to."""
    made = {}
    for name, make in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = make(folder / "own", words), folder / "hf"
        convert.write(*made[name], "huggingface")
    return made


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_the_files_give_our_numbers_as_sentence_transformers_computes_them(exported, kind):
    checkpoint, target = exported[kind]
    for config in target.glob("**/model.safetensors"):
        with safe_open(config, "np") as file:
            assert file.metadata() == {"format": "pt"}  # some versions of transformers ask for it
    if checkpoint.kind == "cross_encoder":
        logits = written(target, HF).logits(rows_of(target, pairs_there(checkpoint)))
        close(odds(logits), scores(checkpoint))
        assert not (target / "modules.json").exists()
        identity = read_json(target / "config.json")["sentence_transformers"]["activation_fn"]
        assert identity == "torch.nn.modules.linear.Identity"
        return
    network, expected = checkpoint.network, vectors(checkpoint)
    for side, folder in towers(checkpoint, target).items():
        modules = read_json(folder / "modules.json")
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        assert kinds == ["Transformer", "Pooling", *["Normalize"] * network.normalize]
        assert (folder / modules[0]["path"]) == folder
        assert all((folder / module["path"]).is_dir() for module in modules)
        pooling = read_json(folder / modules[1]["path"] / "config.json")
        chosen = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode") and on is True]
        assert chosen == [
            {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}[network.pooling]
        ]
        longest = max(checkpoint.lengths.values()) if network.shared else checkpoint.lengths[side]
        assert read_json(folder / "sentence_bert_config.json")["max_seq_length"] == longest
        similarity = read_json(folder / "config_sentence_transformers.json")["similarity_fn_name"]
        assert similarity == ("cosine" if network.normalize else "dot")
        model = written(folder, HF)
        assert read_json(folder / "config.json")["model_type"] == (
            "ernie" if model.sizes.task_types else "bert"
        )
        rows = rows_of(folder, QUERIES if side == "query" else passages_there(checkpoint))
        close(model.vectors(rows, network.pooling, network.normalize), expected[side])


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("for_cn", [True, False])
def test_the_tokenizer_that_is_written_gives_our_ids(tmp_path, lower_case, for_cn):
    settings = {"lower_case": lower_case, "for_cn": for_cn}
    checkpoint = dual(tmp_path, covering(AWKWARD), {"shared": True}, {"positions": 300}, **settings)
    checkpoint.lengths.update(query=300, passage=300)
    convert.write(checkpoint, tmp_path / "hf", "huggingface")
    tokenizer, rows = checkpoint.tokenizer, rows_of(tmp_path / "hf", AWKWARD)
    assert rows == tokenizer.pack_queries(AWKWARD, 300)
    assert len({i for ids, _ in rows for i in ids}) > 60
    pairs = list(zip(AWKWARD, AWKWARD[::-1], strict=True))
    assert rows_of(tmp_path / "hf", pairs) == tokenizer.pack_passages(AWKWARD, AWKWARD[::-1], 300)


def test_text_that_looks_like_a_special_token_is_text_there(exported):
    checkpoint, folder = exported["cls"]
    expected = checkpoint.tokenizer.pack_queries(SPECIAL, 33)
    assert not {0, 4} & {i for row in expected for i in row.token_ids}
    assert rows_of(folder, SPECIAL) == expected


# With transformers and sentence-transformers ----------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sentence_transformers(transformers):
    return pytest.importorskip("sentence_transformers")


quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def loaded_whole(kind: Any, folder: Path) -> Any:
    """A network of transformers, whose every parameter was in the folder, and nothing else."""
    network, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return network.eval()


def states(transformers: ModuleType, folder: Path, texts: Sequence[Any]) -> list[np.ndarray]:
    """The states of every text's tokens, by transformers, in one padded batch."""
    import torch

    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    network = loaded_whole(transformers.AutoModel, folder)
    batch = tokens([list(t) if isinstance(t, tuple) else t for t in texts], padding=True, truncation=True)
    batch = {name: torch.tensor(values) for name, values in batch.items()}
    with torch.no_grad():
        found = network(**batch).last_hidden_state.numpy()
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) > 1
    return [row[:length] for row, length in zip(found, lengths, strict=True)]


@quiet
@every_kind
def test_they_compute_our_numbers_from_what_is_written(exported, transformers, sentence_transformers, kind):
    checkpoint, target = exported[kind]
    network = checkpoint.network
    if checkpoint.kind == "cross_encoder":
        check_cross_encoder(checkpoint, target, transformers, sentence_transformers)
        return
    expected = vectors(checkpoint)
    for side, folder in towers(checkpoint, target).items():
        texts = QUERIES if side == "query" else passages_there(checkpoint)
        rows = states(transformers, folder, texts)
        pooled = np.stack([row[0] if network.pooling == "cls" else row.mean(axis=0) for row in rows])
        length = np.linalg.norm(pooled, axis=-1, keepdims=True) if network.normalize else 1
        close(pooled / length, expected[side])

        loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        found = loaded.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        close(found, expected[side])
        similarity = (
            sentence_transformers.util.cos_sim
            if network.normalize
            else (sentence_transformers.util.dot_score)
        )
        close(loaded.similarity(found, found).numpy(), similarity(found, found).numpy())


def check_cross_encoder(
    checkpoint: Checkpoint, folder: Path, transformers: ModuleType, sentence_transformers: ModuleType
) -> None:
    import torch

    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    network = loaded_whole(transformers.AutoModelForSequenceClassification, folder)
    pairs = pairs_there(checkpoint)
    batch = tokens(*map(list, zip(*pairs, strict=True)), padding=True, truncation=True)
    with torch.no_grad():
        logits = network(**batch.convert_to_tensors("pt")).logits.numpy()
    loaded = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    for found in (logits, loaded.predict(pairs, show_progress_bar=False)):
        found = found.reshape(4, -1)
        assert found.shape == (4, 2 if checkpoint.network.head == "classes" else 1)
        close(odds(found), scores(checkpoint))


@quiet
@every_kind
def test_what_they_load_and_save_again_is_our_model_still(exported, tmp_path, sentence_transformers, kind):
    checkpoint, source = exported[kind]
    cross = checkpoint.kind == "cross_encoder"
    load = sentence_transformers.CrossEncoder if cross else sentence_transformers.SentenceTransformer
    for path in source.glob("**/model.safetensors"):
        target = tmp_path / "again" / path.parent.relative_to(source)
        load(str(path.parent), device="cpu").save_pretrained(str(target))
    again = convert.read(tmp_path / "again")
    assert again.digest() == checkpoint.digest()
    assert again.lengths == checkpoint.lengths
    assert again.tokenizer.settings == checkpoint.tokenizer.settings
    assert convert.largest_difference(checkpoint, again) == 0


@quiet
def test_text_that_looks_like_a_special_token_is_text_to_transformers(exported, transformers):
    checkpoint, folder = exported["cls"]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    expected = checkpoint.tokenizer.pack_queries(SPECIAL, 33)
    assert tokens(SPECIAL)["input_ids"] == [row.token_ids for row in expected]


def saved_by_transformers(
    transformers: ModuleType,
    folder: Path,
    words: Sequence[str],
    model: str = "Model",
    lower_case: bool = True,
    **changes: Any,
) -> Path:
    """A random model, its biases and norms random too, and its tokenizer, as transformers saves them."""
    import torch

    torch.manual_seed(5)
    kind = transformers.ErnieConfig if changes.get("use_task_id") else transformers.BertConfig
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 300,
        "initializer_range": 0.3,  # so large that every part shows
    }
    config = kind(**(sizes | changes))
    network = getattr(transformers, f"{config.model_type.capitalize()}{model}")(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    vocabulary = write_words(folder.with_name("words.txt"), words)
    tokens = transformers.BertTokenizer(str(vocabulary), do_lower_case=lower_case, model_max_length=200)
    tokens.save_pretrained(folder)
    return folder


LONG = [*AWKWARD, "x 检 " * 200]
TASKS = {"use_task_id": True, "task_type_vocab_size": 3}


@quiet
@pytest.mark.parametrize(
    "model, changes",
    [
        pytest.param("Model", {}, id="bert"),
        pytest.param("Model", {"hidden_act": "relu", "layer_norm_eps": 1e-5}, id="relu"),
        pytest.param("Model", {"lower_case": False, "type_vocab_size": 4}, id="cased"),
        pytest.param("Model", TASKS, id="ernie"),
        pytest.param("ForMaskedLM", {}, id="masked-lm"),
        pytest.param("ForPreTraining", {**TASKS, "task_type_vocab_size": 5}, id="pretraining"),
    ],
)
def test_what_transformers_saves_is_read_with_its_ids_and_states(tmp_path, transformers, model, changes):
    folder = saved_by_transformers(transformers, tmp_path / "hf", covering(AWKWARD), model, **changes)
    checkpoint, tokens = convert.read(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert checkpoint.lengths == {"query": 200, "passage": 200}
    packed = checkpoint.tokenizer.pack_queries(LONG, 200)
    assert [row.token_ids for row in packed] == tokens(LONG, truncation=True)["input_ids"]
    pairs = tokens(AWKWARD, AWKWARD[::-1], truncation=True)
    packed = checkpoint.tokenizer.pack_passages(AWKWARD, AWKWARD[::-1], 200)
    assert [row.token_ids for row in packed] == pairs["input_ids"]
    assert [row.type_ids for row in packed] == pairs["token_type_ids"]

    import torch

    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = network(**tokens(LONG, truncation=True, padding=True, return_tensors="pt"))
    close(forward.encode_queries(checkpoint, LONG), found.last_hidden_state[:, 0].numpy())


@quiet
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("changes", [{}, TASKS], ids=["bert", "ernie"])
@pytest.mark.parametrize("saver", ["transformers", "sentence_transformers"])
def test_a_cross_encoder_that_they_save_is_read_with_its_scores(
    tmp_path, words, transformers, sentence_transformers, saver, changes, labels
):
    import torch

    folder = saved_by_transformers(
        transformers, tmp_path / "hf", words, "ForSequenceClassification", num_labels=labels, **changes
    )
    loaded = sentence_transformers.CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    if saver == "sentence_transformers":
        loaded.save_pretrained(str(tmp_path / "again"))
        folder = tmp_path / "again"
    checkpoint = convert.read(folder)
    found = loaded.predict(pairs_there(checkpoint), show_progress_bar=False).reshape(4, -1)
    close(scores(checkpoint), odds(found))


@quiet
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_sentence_transformer_that_is_saved_is_read_with_its_vectors(
    tmp_path, transformers, sentence_transformers, pooling, normalize
):
    from sentence_transformers import models

    folder = saved_by_transformers(transformers, tmp_path / "hf", covering([*AWKWARD, *QUERIES, *TEXTS]))
    modules = [models.Transformer(str(folder), max_seq_length=50), models.Pooling(32, pooling_mode=pooling)]
    modules += [models.Normalize()] * normalize
    loaded = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    loaded.save_pretrained(str(tmp_path / "st"))
    checkpoint = convert.read(tmp_path / "st")
    assert checkpoint.lengths == {"query": 50, "passage": 50}
    texts = [*QUERIES, *LONG]
    expected = loaded.encode(texts, show_progress_bar=False)
    close(forward.encode_queries(checkpoint, texts), expected)
    found = loaded.encode([" ".join(passage) for passage in PASSAGES], show_progress_bar=False)
    close(forward.encode_passages(checkpoint, TITLES, TEXTS), found)
    convert.write(checkpoint, tmp_path / "back", "huggingface")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "back"), device="cpu")
    close(again.encode(texts, show_progress_bar=False), expected)


@quiet
def test_a_model_saved_in_bfloat16_is_read(tmp_path, words, transformers):
    import torch

    folder = saved_by_transformers(transformers, tmp_path / "hf", words)
    network = transformers.AutoModel.from_pretrained(folder).to(torch.bfloat16)
    network.save_pretrained(folder)
    weight = network.embeddings.word_embeddings.weight.float().detach().numpy()
    np.testing.assert_array_equal(convert.read_encoder(folder).arrays["word_embedding.weight"], weight)
