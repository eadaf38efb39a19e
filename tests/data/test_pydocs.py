"""The demo data builder, on a tiny made-up source tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rocketqa_paddle.data.pydocs import QUESTIONS, build, collection, items, python_roots

REST = "It takes care of the details that a caller would rather not think about."

ALPHA = '''
def plain(x):
    """Turn a number into its name.

    >>> plain(1)
    'one'
    The result is a word in English, in lower case, without any hyphen.
    """

async def waits():
    """Wait until the kettle boils. The water is then hot enough for tea, e.g. Green tea or Black tea."""

class Box:
    """A box that holds one thing at a time. Putting a second thing in takes the first one out again."""

    def open(self):
        """Open the lid of the box. Whatever was inside before may be seen, touched and taken out."""

    def _inner(self):
        """Never shown to anybody else. Private methods do not enter the collection at any time at all."""

if True:
    def branch():
        """Answer from inside a condition. Functions that are defined under an if are found as well."""
else:
    def branch():
        """Another branch of the same name. Only the first definition of a qualified name is kept here."""

def lonely():
    """Say a single sentence only."""

def café():
    """Brew a cup of café crème. Der Kaffee wird heiß — mit Zucker,\\u2028Milch und\\ttabs \\ud800."""

def _hidden():
    """Hide from every reader of this. Private functions do not enter the collection at any time at all."""

def undocumented():
    return None
'''

REPEATS = '''
def same_query():
    """Turn a number into its name! This passage differs from the first one but answers the same query."""

def same_passage():
    """Boil the kettle in another way. The water is then hot enough for tea, e.g. Green tea or Black tea."""

def equals_a_query():
    """Open the lid of the box."""

def says_it_twice():
    """Count the red apples. To count the red apples, look at every single apple and count the red ones."""

def signature(x) -> None:
    """signature(x) -> None

    Skip a signature at the start. What matters to a person comes after it, in the next paragraph."""
'''


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write source files under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def many_modules(count: int) -> dict[str, str]:
    """Modules with one to three pairs each, all different."""
    pair = 'def f{i}():\n    """Do job number {m} {i} at once. ' + REST + ' Job {m} {i}."""\n'
    return {
        f"mod{chr(97 + m)}/code.py": "".join(pair.format(m=m, i=i) for i in range(m % 3 + 1))
        for m in range(count)
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with a bit of everything."""
    files = {"alpha.py": ALPHA, "beta/__init__.py": "", "beta/repeats.py": REPEATS}
    files |= {"broken.py": "def oops(:\n", "nul.py": "x = 1\0\n"}
    files |= {"test/support.py": ALPHA, "site-packages/other.py": ALPHA, "beta/test_beta.py": ALPHA}
    return write_tree(tmp_path / "src", files)


def rows(path: Path) -> list[list[str]]:
    """The fields of each line; lines end in a line feed and in nothing else."""
    text = path.read_bytes().decode("utf-8")
    assert not text or text.endswith("\n")
    assert "\r" not in text
    return [line.split("\t") for line in text.split("\n")[:-1]]


def passages(out: Path) -> dict[str, str]:
    """Qualified name -> passage."""
    texts = dict(rows(out / "para.txt"))
    return {title: texts[number] for number, title in rows(out / "para.title.txt")}


def pairs(out: Path, *splits: str) -> dict[str, str]:
    """Qualified name -> query, over the splits."""
    titles = dict(rows(out / "para.title.txt"))
    found = {}
    for split in splits:
        queries = dict(rows(out / f"{split}.query.txt"))
        found |= {titles[passage]: queries[query] for query, passage in rows(out / f"qrels.{split}.tsv")}
    return found


SPLITS = ("train", "dev", "test")


def test_first_sentence_is_the_query_and_the_rest_the_passage(tree, tmp_path):
    build([tree], tmp_path / "out")
    queries, texts = pairs(tmp_path / "out", *SPLITS), passages(tmp_path / "out")
    assert queries["alpha.plain"] == "Turn a number into its name."
    assert texts["alpha.plain"] == (
        "plain(1) 'one' The result is a word in English, in lower case, without any hyphen."
    )
    assert queries["alpha.waits"] == "Wait until the kettle boils."
    assert queries["alpha.Box"] == "A box that holds one thing at a time."
    assert queries["alpha.Box.open"] == "Open the lid of the box."
    assert queries["alpha.branch"] == "Answer from inside a condition."
    assert queries["beta.repeats.signature"] == "Skip a signature at the start."


def test_one_sentence_is_a_passage_without_a_query(tree, tmp_path):
    build([tree], tmp_path / "out")
    assert passages(tmp_path / "out")["alpha.lonely"] == "Say a single sentence only."
    assert "alpha.lonely" not in pairs(tmp_path / "out", *SPLITS)


def test_private_and_undocumented_names_and_tests_stay_out(tree, tmp_path):
    build([tree], tmp_path / "out")
    names = passages(tmp_path / "out").keys()
    assert not [name for name in names if "_hidden" in name or "_inner" in name or "undocumented" in name]
    assert {name.split(".")[0] for name in names} == {"alpha", "beta"}


def test_repeats_are_skipped(tree, tmp_path):
    build([tree], tmp_path / "out")
    queries, texts = pairs(tmp_path / "out", *SPLITS), passages(tmp_path / "out")
    assert "beta.repeats.same_query" not in texts
    assert "beta.repeats.equals_a_query" not in texts
    assert texts["beta.repeats.same_passage"].startswith("Boil the kettle in another way. The water")
    assert "beta.repeats.same_passage" not in queries
    assert len(set(queries.values())) == len(queries)
    assert len(set(texts.values())) == len(texts)
    assert not set(queries.values()) & set(texts.values())


def test_a_passage_does_not_hold_its_own_query(tree, tmp_path):
    build([tree], tmp_path / "out")
    queries, texts = pairs(tmp_path / "out", *SPLITS), passages(tmp_path / "out")
    assert "beta.repeats.says_it_twice" in texts
    assert "beta.repeats.says_it_twice" not in queries
    assert not [name for name, query in queries.items() if query.rstrip(".").lower() in texts[name].lower()]


def test_unicode_survives_and_lines_stay_whole(tree, tmp_path):
    build([tree], tmp_path / "out")
    assert pairs(tmp_path / "out", *SPLITS)["alpha.café"] == "Brew a cup of café crème."
    text = passages(tmp_path / "out")["alpha.café"]
    assert text == "Der Kaffee wird heiß — mit Zucker, Milch und tabs ."


def test_files_that_do_not_parse_are_counted_and_named(tree, tmp_path):
    summary = build([tree], tmp_path / "out")
    assert summary.unreadable == ["broken.py", "nul.py"]
    assert "2 skipped as unreadable" in str(summary)
    assert "broken.py" in str(summary)


def test_format_of_the_files(tree, tmp_path):
    summary = build([tree], tmp_path / "out")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {collection.RECORD, *collection.FILES}
    ids = [number for number, _ in rows(out / "para.txt")]
    assert ids == [str(number) for number in range(summary.passages)]
    assert ids == [number for number, _ in rows(out / "para.title.txt")]
    query_ids = [query for split in SPLITS for query, _ in rows(out / f"{split}.query.txt")]
    assert sorted(map(int, query_ids)) == list(range(sum(summary.pairs.values())))
    for split in SPLITS:
        judged = rows(out / f"qrels.{split}.tsv")
        assert [query for query, _ in judged] == [query for query, _ in rows(out / f"{split}.query.txt")]
        assert {passage for _, passage in judged} <= set(ids)


def test_splits_share_no_module_and_keep_their_shares(tmp_path):
    root = write_tree(tmp_path / "src", many_modules(20))
    summary = build([root], tmp_path / "out")
    modules = [{name.split(".")[0] for name in pairs(tmp_path / "out", split)} for split in SPLITS]
    assert all(modules)
    assert sum(map(len, modules)) == len(set.union(*modules)) == 20
    total = sum(summary.pairs.values())
    for split, share in collection.SHARES.items():
        assert abs(summary.pairs[split] - share * total) <= 3


def test_a_large_package_is_divided_by_its_modules(tmp_path):
    inside = {f"big/{name.replace('/', '_')}": text for name, text in many_modules(20).items()}
    build([write_tree(tmp_path / "src", inside)], tmp_path / "out")
    modules = [{".".join(name.split(".")[:2]) for name in pairs(tmp_path / "out", s)} for s in SPLITS]
    assert all(modules)
    assert sum(map(len, modules)) == len(set.union(*modules)) == 20


def test_twins_belong_to_one_split():
    assert items.family("posixpath.split") == items.family("ntpath.split") == items.family("os.walk")
    assert items.family("_pydecimal.Decimal.sqrt") == items.family("decimal.Decimal") == "decimal"


def test_same_input_same_bytes(tmp_path):
    root = write_tree(tmp_path / "src", many_modules(12) | {"alpha.py": ALPHA})
    for out in ("one", "two"):
        build([root], tmp_path / out)
    for name in collection.FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_max_passages_keeps_a_sample_with_the_same_splits(tmp_path):
    root = write_tree(tmp_path / "src", many_modules(20))
    build([root], tmp_path / "all")
    summary = build([root], tmp_path / "few", max_passages=15)
    assert summary.passages == len(rows(tmp_path / "few" / "para.txt")) == 15
    for split in SPLITS:
        assert pairs(tmp_path / "few", split).items() <= pairs(tmp_path / "all", split).items()


def test_max_passages_prefers_the_first_root_and_pairs(tmp_path):
    first = write_tree(tmp_path / "first", {"alpha.py": ALPHA})
    second = write_tree(tmp_path / "second", many_modules(20))
    alone = build([first], tmp_path / "alone")
    titles = {row[1] for row in rows(tmp_path / "alone" / "para.title.txt")}
    both = build([first, second], tmp_path / "both", max_passages=alone.passages + 4)
    assert titles < {row[1] for row in rows(tmp_path / "both" / "para.title.txt")}
    assert sum(both.pairs.values()) == sum(alone.pairs.values()) + 4


def test_natural_questions(tree, tmp_path):
    questions = tmp_path / "questions.tsv"
    questions.write_text(
        "# question, names\nhow do I boil water\talpha.waits beta.repeats.same_passage gone.name\n"
        "\nwhere is it\tgone.name\n",
        encoding="utf-8",
    )
    summary = build([tree], tmp_path / "out", questions)
    assert (summary.questions, summary.dropped_questions) == (1, 1)
    out = tmp_path / "out"
    [[query, text]] = rows(out / "natural.query.txt")
    assert text == "how do I boil water"
    titles = dict(rows(out / "para.title.txt"))
    judged = rows(out / "qrels.natural.tsv")
    assert [judgement[0] for judgement in judged] == [query, query]
    assert [titles[passage] for _, passage in judged] == ["alpha.waits", "beta.repeats.same_passage"]


def test_topics_give_what_is_written_in_c(tmp_path):
    entry = (
        "str.shout()\n\n   Return the string in a loud voice. Every letter is made as large as it can be.\n\n"
    )
    source = f"topics = {{'string-methods': {('Methods' + chr(10) * 2 + entry)!r}}}\n"
    root = write_tree(tmp_path / "src", {"pydoc_data/topics.py": source})
    build([root], tmp_path / "out")
    assert pairs(tmp_path / "out", *SPLITS) == {"str.shout": "Return the string in a loud voice."}


def test_an_earlier_build_is_replaced_and_nothing_else(tree, tmp_path):
    out = tmp_path / "data" / "out"
    build([tree], out)
    build([tree], out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    (out / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds notes\.md, which would be lost"):
        build([tree], out)
    assert (out / "notes.md").read_text(encoding="utf-8") == "mine"


def test_a_collection_of_somebody_else_is_not_replaced(tree, tmp_path):
    out = write_tree(tmp_path / "mine", {"para.txt": "p1\tmy text\n", "train.query.txt": "q1\tmy query\n"})
    with pytest.raises(ValueError, match="no collection of docstrings that this project wrote"):
        build([tree], out)
    assert (out / "para.txt").read_text(encoding="utf-8") == "p1\tmy text\n"


def test_a_failed_write_leaves_nothing(tree, tmp_path):
    summary = build([tree], tmp_path / "out" / "whole")
    with pytest.raises(TypeError):
        collection.write_folder(
            tmp_path / "broken", {"para.txt": ["0\ttext"], "para.title.txt": None}, summary
        )
    assert not (tmp_path / "broken").exists()


def test_errors_say_what_to_do(tree, tmp_path):
    with pytest.raises(ValueError, match="is not a folder: give folders"):
        build([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ValueError, match="max_passages=0, expected at least 1"):
        build([tree], tmp_path / "out", max_passages=0)
    with pytest.raises(ValueError, match="no docstring of two sentences"):
        build([write_tree(tmp_path / "empty", {"a.py": "x = 1\n"})], tmp_path / "out")
    questions = write_tree(tmp_path, {"q.tsv": "no tab here\n"}) / "q.tsv"
    with pytest.raises(ValueError, match=r"q\.tsv:1: 'no tab here' is not a question"):
        build([tree], tmp_path / "out", questions)
    assert not (tmp_path / "out").exists()


def test_the_questions_file_is_well_formed():
    questions = collection.read_questions(QUESTIONS)
    assert QUESTIONS.read_text(encoding="utf-8").startswith("#")
    assert len(questions) >= 100
    assert len({question for question, _ in questions}) == len(questions)
    assert all(len(names) == len(set(names)) for _, names in questions)


def test_a_package_as_root_keeps_its_name(tmp_path):
    root = write_tree(tmp_path / "site", {"box/__init__.py": "", "box/alpha.py": ALPHA})
    build([root / "box"], tmp_path / "out")
    titles = {row[1] for row in rows(tmp_path / "out" / "para.title.txt")}
    assert titles
    assert all(title.startswith("box.") for title in titles)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match="no_such_package"):
        python_roots(["no_such_package"])
