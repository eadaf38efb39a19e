"""Text to ids: the Rust word pieces against the plain oracle, packing, vocabularies of either kind."""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference
import toy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rocketqa_paddle.networks import pieces, tokenization
from rocketqa_paddle.networks.tokenization import Tokenizer, truncate_pair
from rocketqa_paddle.networks.vocabulary import SPECIAL_TOKENS, read_vocab, train_vocab

# Rust and Python carry Unicode tables of different ages and disagree on marks and punctuation that came late
# (U+0C04, U+2E43, ...). So: characters whose category is the same in Unicode 3.2 and now. Capital sigma has
# tests of its own.
STABLE = [
    character
    for character in map(chr, range(0x2FA20))
    if unicodedata.category(character) not in ("Cn", "Cs")
    and unicodedata.category(character) == unicodedata.ucd_3_2_0.category(character)
    and character != "Σ"
]
MIXED = "aZé9 .-'\"_$+\t\n\r\x0b\x85\0\ufffd\u00a0\u00ad\u200b\u2028\u3000中文İßΩσς\u0301가ﬁ,。!?"


def write_vocab(folder: Path | str, tokens: list[str]) -> Path:
    path = Path(folder) / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def visible(text: str) -> list[str]:
    return sorted({c for c in text if unicodedata.category(c)[0] not in "CZ"})


# Word pieces ------------------------------------------------------------------------------------


@given(
    text=st.text(st.one_of(st.sampled_from(STABLE), st.sampled_from(MIXED)), max_size=30),
    lower_case=st.booleans(),
    data=st.data(),
)
@example(text="ΟΔΟΣ, ΑΣ. ΣΑ Σ", lower_case=True, data=None)
@example(text="na\u0131\u0307ve Zoë\u2028x\x0by😀!", lower_case=True, data=None)
def test_word_pieces_equal_the_oracle(text, lower_case, data):
    characters = visible(text + unicodedata.normalize("NFD", text.lower()))
    words = "".join(characters) and reference.basic_tokens(text, lower_case)
    vocab = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    if data and words:
        kept = data.draw(st.sets(st.sampled_from(vocab[5:]))) if len(vocab) > 5 else set()
        spans = data.draw(st.lists(st.tuples(st.sampled_from(words), st.integers(0, 3), st.integers(1, 5))))
        longer = {("##" if start else "") + word[start : start + n] for word, start, n in spans}
        vocab = [*SPECIAL_TOKENS, *sorted((kept | longer) - {"##", ""})]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(write_vocab(folder, vocab), lower_case=lower_case)
    expected = reference.word_pieces(text, vocab, lower_case)
    assert tokenizer.tokenize(text) == expected
    assert tokenizer.encode([text, "", text]) == [
        [vocab.index(t) for t in expected],
        [],
        tokenizer.encode([text])[0],
    ]


@pytest.mark.parametrize("character", ["\U0002b820", "\U0002b91f"])
def test_every_han_character_is_a_word(tmp_path, character):
    vocab = [*SPECIAL_TOKENS, "a", "b", character]
    assert Tokenizer(write_vocab(tmp_path, vocab)).tokenize(f"a{character}b") == ["a", character, "b"]


@pytest.mark.xfail(strict=True, reason="lower-casing precedes cleaning, so a control character ends a word")
def test_sigma_next_to_a_control_character_is_lowered_as_if_the_control_were_gone(tmp_path):
    vocab = [*SPECIAL_TOKENS, *"ασς", *(f"##{c}" for c in "ασς")]
    text = "ΑΣ\x01Α"
    assert Tokenizer(write_vocab(tmp_path, vocab)).tokenize(text) == reference.word_pieces(text, vocab)


@pytest.mark.parametrize("length, tokens", [(100, ["x"] + ["##x"] * 99), (101, ["[UNK]"])])
def test_words_over_100_characters_are_unknown(tokenizer, length, tokens):
    assert tokenizer.tokenize("x" * length) == tokens
    assert tokenizer.tokenize("paris " + "x" * length + ".") == ["paris", *tokens, "."]


def test_a_special_token_in_a_text_is_ordinary_text(tokenizer):
    special = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id}
    assert not special & set(tokenizer.encode(["a [SEP] b [CLS][PAD]"])[0])
    assert tokenizer.tokenize("[SEP]") == ["[", "s", "##e", "##p", "]"]


def test_for_cn_removes_spaces_and_no_other_white_space(vocab):
    chinese = Tokenizer(vocab, for_cn=True)
    assert chinese.tokenize("a b  c") == ["a", "##b", "##c"]
    assert chinese.tokenize("a\tb") == ["a", "b"]
    assert chinese.encode(["a b"]) == Tokenizer(vocab).encode(["ab"])


def test_lower_case_false_keeps_case_and_accents(tmp_path):
    path = write_vocab(tmp_path, [*SPECIAL_TOKENS, "É", "É", "E"])
    assert Tokenizer(path, lower_case=False).tokenize("É e") == ["É", "[UNK]"]


# Memory -----------------------------------------------------------------------------------------


@pytest.fixture
def tokenized(vocab, monkeypatch):
    """A tokenizer that remembers 3 texts, and the texts that it has tokenized so far."""
    monkeypatch.setattr(tokenization, "REMEMBERED_TEXTS", 3)
    tokenizer, seen = Tokenizer(vocab), []
    ids = tokenizer._pieces.ids
    monkeypatch.setattr(
        tokenizer._pieces, "ids", lambda texts, limit: seen.extend(texts) or ids(texts, limit)
    )
    return tokenizer, seen


def test_a_text_met_twice_is_tokenized_once(tokenized, tokenizer):
    remembering, seen = tokenized
    texts = ["moon", "", "moon", "what is the moon ?"]
    expected = [tokenizer.encode([text])[0] for text in texts]
    for _ in range(2):
        assert remembering.encode(texts) == expected
        assert remembering.pack_passages(["moon"], [""], 9) == tokenizer.pack_passages(["moon"], [""], 9)
    remembering.encode(["moon"])[0].clear()  # what is given out is the caller's own
    assert remembering.encode(texts) == expected
    assert seen == ["moon", "", "what is the moon ?"]


def test_no_more_texts_than_the_bound_are_remembered_and_the_oldest_is_dropped(tokenized):
    remembering, seen = tokenized
    for text in ["a", "b", "c", "d"]:
        remembering.encode([text])
        assert len(remembering._memory) <= 3
    remembering.encode(["b", "c", "d"])
    assert seen == ["a", "b", "c", "d"]
    remembering.encode(["a"])  # which drops b
    remembering.encode(["c", "d", "b"])
    assert seen == ["a", "b", "c", "d", "a", "b"]
    assert len(remembering.encode([*"abcdefgh"])) == 8
    assert len(remembering._memory) == 3


def test_threads_may_share_a_tokenizer(tokenized, vocab):
    remembering, _ = tokenized
    texts = [f"moon {a}{b}" for a in "abcdef" for b in "uvwxyz"]
    expected = dict(zip(texts, Tokenizer(vocab).encode(texts), strict=True))

    def encode(offset: int) -> Sequence[bool]:
        pairs = [[texts[(offset + i) % 36], texts[(7 * offset + 5 * i) % 36]] for i in range(200)]
        return [remembering.encode(pair) == [expected[text] for text in pair] for pair in pairs]

    with ThreadPoolExecutor(6) as threads:
        assert all(all(right) for right in threads.map(encode, range(6)))
    assert len(remembering._memory) == 3


def test_no_more_characters_than_the_bound_are_remembered(vocab, monkeypatch):
    monkeypatch.setattr(tokenization, "REMEMBERED_CHARACTERS", 10)
    tokenizer = Tokenizer(vocab)
    for texts, remembered in (
        (["moon", "sun", "a b"], 3),
        (["moon sun"], 1),
        (["x" * 11], 0),
        (["a", "b"], 2),
    ):
        tokenizer.encode(texts)
        assert len(tokenizer._memory) == remembered


def test_ids_that_were_cut_are_made_again_when_more_are_asked_for(tokenized, tokenizer):
    remembering, seen = tokenized
    whole = tokenizer.encode(["what is the moon ?"])[0]
    for limit, times in ((2, 1), (1, 1), (2, 1), (4, 2), (3, 2), (9, 3), (None, 3), (50, 3), (2, 3)):
        assert remembering.encode(["what is the moon ?"], limit) == [whole[:limit]]
        assert len(seen) == times


# Long texts -------------------------------------------------------------------------------------

SEPARATORS = " \t\n\r\u3000中文、。!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'\x1c\x85\u2028\u00a0·"
TEXT = st.text(
    st.one_of(
        st.sampled_from(SEPARATORS),
        st.sampled_from(MIXED + "Σ'’.:·^`\u0301\u0327\u0338"),
        st.sampled_from("aBΣς1"),
        st.sampled_from(STABLE),
    ),
    max_size=40,
)


def cut_everywhere(monkeypatch: pytest.MonkeyPatch, part: int, block: int = 7) -> None:
    """Let texts of a few characters be cut as others are after thousands."""
    monkeypatch.setattr(pieces, "_PART", part)
    monkeypatch.setattr(pieces, "_A_TOKEN", 1)
    monkeypatch.setattr(pieces, "_BLOCK", block)


@settings(max_examples=400)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=3),
    limit=st.one_of(st.none(), st.integers(0, 12)),
    part=st.integers(1, 9),
    lower_case=st.booleans(),
    for_cn=st.booleans(),
)
@example(["ΑΣ'Α ΑΣ.Α ΑΣ:Α ΑΣ^Α ΑΣ`Α ΑΣ·Α"], None, 1, True, False)  # each sigma is in a word
@example(["ΑΣ'中Σ"], 3, 1, True, False)
@example(["ΑΣ ́Σ"], 3, 1, True, False)
@example(["a\u0301\u0327 \u0327\u0301b"], 9, 1, True, False)
@example(["a\x00 \x00b"], 9, 2, True, True)
@example(["x" * 99 + "É" + " y", "x" * 99 + "É中"], 3, 1, True, False)
@example(["x" * 101 + " y"], 3, 1, True, False)
def test_the_tokens_of_a_text_that_is_cut_are_the_first_of_the_whole(texts, limit, part, lower_case, for_cn):
    characters = visible("".join(unicodedata.normalize("NFD", t + t.lower()) + t for t in texts))
    vocab = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    with tempfile.TemporaryDirectory() as folder:
        path = write_vocab(folder, vocab)
        whole, cut = (Tokenizer(path, lower_case=lower_case, for_cn=for_cn) for _ in range(2))
    expected = whole.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        cut_everywhere(patch, part)
        assert cut.encode(texts, limit) == [ids[:limit] for ids in expected]


@given(
    before=st.text(st.sampled_from("aΣ1' é中."), max_size=4),
    run=st.text(st.sampled_from("aZ1"), min_size=90, max_size=115),
    after=st.text(st.sampled_from("aΣ1' é中.ß"), max_size=4),
)
def test_a_word_without_end_is_unknown_however_it_is_shortened(tokenizer, before, run, after):
    text = before + run + after
    with pytest.MonkeyPatch.context() as patch:
        expected = tokenizer._pieces.ids([text])[0].tolist()
        patch.setattr(pieces, "_PART", 2)
        assert tokenizer._pieces.ids([text])[0].tolist() == expected


@pytest.mark.parametrize(
    "text", ["moon tides " * 10**6, "检索稠密" * 10**6, "moon," * 10**6, "x" * 10**7, "moon\n\n" * 10**6]
)
def test_of_a_long_text_only_the_beginning_is_tokenized(vocab, monkeypatch, text):
    tokenizer, given = Tokenizer(vocab), []
    encode = tokenizer._pieces._tokenizer
    spy = SimpleNamespace(
        encode_batch_fast=lambda texts, **how: given.extend(texts) or encode.encode_batch_fast(texts, **how)
    )
    monkeypatch.setattr(tokenizer._pieces, "_tokenizer", spy)
    [packed] = tokenizer.pack_passages([""], [text], 64)
    assert sum(map(len, given)) < 1000
    assert packed == Tokenizer(vocab).pack_passages([""], [text[:2000]], 64)[0]


@given(
    st.lists(st.sampled_from(["moon", "zz", "é", "Σ"]), max_size=30).map(" ".join),
    st.lists(st.sampled_from(["moon", "zz", "é", "Σ"]), max_size=30).map(" ".join),
    st.integers(5, 20),
)
def test_packing_texts_that_are_cut_is_that_of_whole_texts(vocab, first, second, length):
    whole, cut = Tokenizer(vocab), Tokenizer(vocab, one_segment=False)
    packs = [
        lambda t: t.pack_queries([first], length),
        lambda t: t.pack_passages([first], [second], length),
        lambda t: t.pack_pairs([first], [second], [first], length),
    ]
    expected = [pack(whole) for pack in packs]
    with pytest.MonkeyPatch.context() as patch:
        cut_everywhere(patch, 2)
        assert [pack(cut) for pack in packs] == expected


# Packing ----------------------------------------------------------------------------------------

ids = st.lists(st.integers(0, 99), max_size=14)


@given(ids, ids, st.integers(0, 30))
def test_truncation_is_that_of_the_naive_loop(first, second, limit):
    given_first, given_second = list(first), list(second)
    result = truncate_pair(first, second, limit)
    assert tuple(map(list, result)) == reference.truncate(first, second, limit)
    assert (first, second) == (given_first, given_second)


words = st.lists(st.sampled_from(["paris", "moon", "zzz", "é?", "中", "."]), max_size=9).map(" ".join)


@given(words, words, words, st.integers(4, 24))
def test_packing_has_the_formats_of_the_reference(tokenizer, query, title, text, length):
    q, h, t = tokenizer.encode([query, title, text])
    cls, sep = tokenizer.cls_id, tokenizer.sep_id

    packed = tokenizer.pack_queries([query], length)
    body = q[: length - 2]
    assert packed == [([cls, *body, sep], [0] * (len(body) + 2))]

    for packed, (first, second) in (
        (tokenizer.pack_passages([title], [text], length), reference.truncate(h, t, length - 3)),
        (tokenizer.pack_pairs([query], [title], [text], length), reference.truncate(q, h + t, length - 3)),
    ):
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert packed == [([cls, *first, sep, *second, sep], types)]
        assert len(packed[0].token_ids) <= length


def test_an_empty_title_keeps_its_sep(tokenizer):
    (packed,) = tokenizer.pack_passages([""], ["moon"], 16)
    moon = tokenizer.encode(["moon"])[0]
    assert packed == ([tokenizer.cls_id, tokenizer.sep_id, *moon, tokenizer.sep_id], [0, 0, 1, 1])


def test_rows_keep_their_order_and_unequal_columns_are_refused(tokenizer):
    titles, texts = ["paris", "", "moon"], ["a", "b", "c"]
    alone = [tokenizer.pack_passages([h], [t], 16)[0] for h, t in zip(titles, texts, strict=True)]
    assert tokenizer.pack_passages(titles, texts, 16) == alone
    with pytest.raises(ValueError):
        tokenizer.pack_passages(["a", "b"], ["a"], 16)
    with pytest.raises(ValueError):
        tokenizer.pack_pairs(["a"], ["a"], ["a", "b"], 16)


# Vocabulary files -------------------------------------------------------------------------------


def test_a_vocabulary_may_give_its_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\t7\n[UNK]\t1\r\n[CLS]\t2\n[SEP]\t3\nmoon\t40\nsun\t5\n", encoding="utf-8")
    tokenizer = Tokenizer(path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (7, 2, 3)
    assert tokenizer.encode(["Sun moon star"]) == [[5, 40, 1]]
    assert len(tokenizer) == 41
    assert read_vocab(path)["moon"] == 40


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.txt: no vocabulary"):
        Tokenizer(tmp_path / "nothing.txt")


@pytest.mark.parametrize("missing", SPECIAL_TOKENS[:4])
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path, missing):
    path = write_vocab(tmp_path, [token for token in [*SPECIAL_TOKENS, "a"] if token != missing])
    with pytest.raises(ValueError, match=rf"vocab.txt: the vocabulary has no \[{missing[1:-1]}\]"):
        Tokenizer(path)


def test_an_id_that_is_no_number_is_refused_with_its_line(tmp_path):
    path = write_vocab(tmp_path, ["[PAD]\t0", "[UNK]\tone"])
    with pytest.raises(ValueError, match="vocab.txt:2: 'one' is not an id"):
        Tokenizer(path)


def test_a_saved_vocabulary_reads_the_same(tmp_path):
    source = tmp_path / "anything.txt"
    source.write_text("[PAD]\t0\n[UNK]\t1\n[CLS]\t2\n[SEP]\t3\nmoon\t9\n", encoding="utf-8")
    (tmp_path / "copy").mkdir()
    assert Tokenizer(source).save(tmp_path / "copy") == "vocab.txt"
    assert (tmp_path / "copy" / "vocab.txt").read_bytes() == source.read_bytes()
    assert Tokenizer(tmp_path / "copy" / "vocab.txt").encode(["moon x"]) == [[9, 1]]


def test_a_trained_vocabulary_covers_its_corpus(tmp_path):
    corpus = ["The moon, the MOON and the café!", "moon tides: 1969"]
    train_vocab(corpus, tmp_path / "vocab.txt", size=200)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == list(SPECIAL_TOKENS)
    assert len(set(lines)) == len(lines) <= 200
    tokenizer = Tokenizer(tmp_path / "vocab.txt")
    assert tokenizer.tokenize("Moon") == ["moon"]
    assert not any("[UNK]" in tokenizer.tokenize(text) for text in corpus)


TIES = [" ".join(f"{a}{b}{a}" for a in "abcdef" for b in "uvwxyz")]  # pairs that are all equally frequent


def test_a_trained_vocabulary_keeps_to_its_size(tmp_path):
    train_vocab(TIES, tmp_path / "vocab.txt", size=60)
    assert len((tmp_path / "vocab.txt").read_text().splitlines()) == 60


def test_training_a_vocabulary_is_repeatable(tmp_path):
    for name in ("one", "two"):
        train_vocab(TIES, tmp_path / name, size=60)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()


# SentencePiece ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["control_symbols", "user_defined_symbols"])
def sentence_pieces(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    corpus = [f"the {a} moon shines on {b} water" for a in ("old", "new", "cold") for b in ("hot", "red")]
    symbols = {request.param: ["[CLS]", "[SEP]", "[MASK]"]}
    return toy.sentence_pieces(folder, corpus, 50, **toy.PADDED, **symbols)


def test_sentence_pieces_pack_like_word_pieces(sentence_pieces):
    tokenizer = Tokenizer(sentence_pieces)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    query, title, text = tokenizer.encode(["the moon", "", "hot water"])
    assert query and text and title == []
    assert "".join(tokenizer.tokenize("the moon")).replace("▁", " ").strip() == "the moon"
    assert tokenizer.pack_queries(["the moon"], 64) == [([2, *query, 3], [0] * (len(query) + 2))]
    types = [0, 0] + [1] * (len(text) + 1)
    assert tokenizer.pack_passages([""], ["hot water"], 64) == [([2, 3, *text, 3], types)]
    first, second = reference.truncate(query, text, 6)
    assert tokenizer.pack_pairs(["the moon"], [""], ["hot water"], 9)[0].token_ids == [
        2,
        *first,
        3,
        *second,
        3,
    ]


def test_sentence_pieces_are_saved_under_their_own_name(sentence_pieces, tmp_path):
    tokenizer = Tokenizer(sentence_pieces)
    assert tokenizer.save(tmp_path) == "spm.model"
    again = Tokenizer(tmp_path / "spm.model")
    assert again.encode(["the cold moon"]) == tokenizer.encode(["the cold moon"])
    assert len(again) == len(tokenizer)


@pytest.fixture(scope="module", params=["unigram", "bpe", "across words", "suffix"])
def any_sentence_pieces(request, tmp_path_factory):
    """SentencePiece models of several kinds, whose pieces may reach from one word into the next."""
    folder, how = (
        tmp_path_factory.mktemp("spm"),
        {"model_type": "bpe" if request.param == "bpe" else "unigram"},
    )
    if request.param == "across words":
        how["split_by_whitespace"] = False
    if request.param == "suffix":
        how["treat_whitespace_as_suffix"] = True
    corpus = [f"the {a} moon shines on {b} water, 12 times" for a in ("old", "new") for b in ("hot", "red")]
    symbols = {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    return toy.sentence_pieces(folder, corpus * 3, 70, **toy.PADDED, **symbols, **how)


@settings(max_examples=150)
@given(
    text=st.text(st.sampled_from("themoonshi 12  ,é字\u0301\u00a0\u3000\u2581ﬁ½\t\n"), max_size=60),
    words=st.lists(
        st.sampled_from(["the old moon shines", "on hot water", "moon", "on", "字", "1"]), max_size=9
    ),
    limit=st.integers(1, 12),
)
def test_sentence_pieces_of_a_text_that_is_cut_are_the_first_of_the_whole(
    any_sentence_pieces, text, words, limit
):
    for given_text in (text, " ".join(words), text + " ".join(words), " ".join(words) + text):
        whole, cut = Tokenizer(any_sentence_pieces), Tokenizer(any_sentence_pieces)
        expected = whole.encode([given_text])[0]
        with pytest.MonkeyPatch.context() as patch:
            cut_everywhere(patch, 2)
            assert cut.encode([given_text], limit) == [expected[:limit]]


def test_pieces_that_reach_from_one_word_into_the_next_are_noticed(any_sentence_pieces):
    """A text is then not cut: the best pieces of its beginning need not begin those of the whole."""
    tokenizer = Tokenizer(any_sentence_pieces)
    reaching = [piece for piece in tokenizer.tokenize("the old moon shines on hot water") if "▁" in piece[1:]]
    assert tokenizer._pieces._keeps_to_words == (not reaching)


def test_of_a_long_text_only_the_beginning_becomes_sentence_pieces(sentence_pieces, monkeypatch):
    tokenizer, given = Tokenizer(sentence_pieces), []
    encode = tokenizer._pieces._model.encode
    spy = SimpleNamespace(encode=lambda texts: given.extend(texts) or encode(texts))
    expected = tokenizer.pack_queries(["the old moon shines " * 100], 64)
    tokenizer._pieces._keeps_to_words  # noqa: B018 (reads the vocabulary of the real model)
    monkeypatch.setattr(tokenizer._pieces, "_model", spy)
    assert tokenizer.pack_queries(["the old moon shines " * 10**5], 64) == expected
    assert sum(map(len, given)) < 1000


def test_a_damaged_sentence_piece_model_is_named(tmp_path):
    (tmp_path / "spm.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="spm.model: not a whole SentencePiece model"):
        Tokenizer(tmp_path / "spm.model")


def test_sentence_pieces_without_special_tokens_are_refused(tmp_path):
    path = toy.sentence_pieces(tmp_path, ["the moon"] * 3, 20)
    with pytest.raises(ValueError, match=r"spm.model: the vocabulary has no \[PAD\]"):
        Tokenizer(path)
