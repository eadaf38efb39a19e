"""Answers in passages: words as DPR splits them, files as DPR writes them, and the measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run, words

from rocketqa_paddle.data.answers import load_answers
from rocketqa_paddle.data.runs import write_run
from rocketqa_paddle.evaluation import answers as matching
from rocketqa_paddle.evaluation.answers import Matcher
from rocketqa_paddle.records import Hit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 km/h.", ["it", "'", "s", "3", ".", "5", "km", "/", "h", "."]),
        ("snake_case", ["snake", "_", "case"]),
        ("Café", ["cafe\u0301"]),  # a decomposed accent is a mark, which belongs to the word
        ("東京は日本", ["東京は日本"]),
        ("a\u200bb c\u00a0d", ["a", "b", "c", "d"]),  # a zero-width and a no-break space
        ("½ € 👍🏽", ["½", "€", "👍", "🏽"]),
        ("ﬁn ΑΣ", ["ﬁn", "ας"]),
        ("", []),
    ],
)
def test_words_are_letters_digits_and_marks_and_other_signs_alone(text: str, expected: list[str]) -> None:
    assert matching.words(text) == expected


@pytest.mark.parametrize(
    ("answer", "text", "holds"),
    [
        ("Linda Davis", "sung with LINDA  davis.", True),
        ("Linda Davis", "Linda and Davis", False),
        ("art", "a smart party", False),
        ("14 December 1972", "on 14 December, 1972", False),
        ("U.S.", "in the U.S. since", True),
        ("U.S.", "in the US", False),
        ("Beyonc\u00e9", "BEYONCE\u0301 sang", True),
        ("Beyonce", "Beyonc\u00e9 sang", False),
        ("straße", "die STRASSE", False),
        ("日本", "東京は日本の首都", False),  # DPR splits no words where no spaces are
        ("3", "3.5", True),
        ("C++", "C++ and C", True),
        ("\u200b", "anything", True),
    ],
)
def test_an_answer_is_its_words_in_a_row(answer: str, text: str, holds: bool) -> None:
    assert Matcher(["nowhere", answer]).matches(text) is holds


def test_files_of_dpr_and_of_json(tmp_path: Path) -> None:
    path = tmp_path / "qa.csv"
    path.write_text(
        "who sings\t['Linda Davis', \"O'Hara\"]\n"
        'when\t["14 December", "1972"]\n'
        '"a ""quoted"" one"\t"[""Café"", \'b\']"\n'
        "who sings\t['Reba']\n",
        encoding="utf-8",
    )
    assert load_answers(path) == {
        "who sings": ["Linda Davis", "O'Hara", "Reba"],
        "when": ["14 December", "1972"],
        'a "quoted" one': ["Café", "b"],
    }
    path.write_text('{"question": "a", "answer": ["b"]}\n{"question": "c", "answer": "d"}\n')
    assert load_answers(path) == {"a": ["b"], "c": ["d"]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a", "1 columns, expected QUESTION, a tab"),
        ("a\tb\tc", "3 columns"),
        ("a\tb", "the second column is no list"),
        ("a\t__import__('os').system('true')", "the second column is no list"),
        ("a\t[]", "expected a list of strings, at least one"),
        ("a\t[1]", "expected a list of strings"),
        ("a\t{'b': 1}", "expected a list of strings"),
        ("a\t['']", "an answer is empty"),
        ("  \t['b']", "the question is empty"),
        ("a\t" + "[" * 5000, "the second column is no list"),
        ('{"question": "a"}', "expected a list of strings"),
    ],
)
def test_lines_that_are_none_are_refused(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "qa.csv").write_text(line + "\n")
    with pytest.raises(ValueError, match=told):
        load_answers(tmp_path / "qa.csv")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three questions with answers and one without, and two runs: the answer is at rank 2, 1 and nowhere."""
    texts = {"q1": "who sings", "q2": "when was it", "q3": "where is it", "q4": "why"}
    contents = {
        "queries": "".join(f"{id}\t{text}\n" for id, text in texts.items()),
        "passages": "p1\tthe year 1972 .\np2\tReba and Linda Davis\np3\tnothing\n",
        "answers": "who sings\t['Linda Davis']\nwhen was it\t['1972', '1973']\nwhere is it\t['Rome']\n",
    }
    paths = {name: tmp_path / name for name in (*contents, "run", "baseline")}
    for name, content in contents.items():
        paths[name].write_text(content)
    for name, order in (("run", "123"), ("baseline", "312")):
        hits = {id: [Hit(id, f"p{n}", rank, 3.0 - rank) for rank, n in enumerate(order, 1)] for id in texts}
        write_run(paths[name], hits)
    return paths


def test_evaluate_by_answers(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate", *words(**files, measures="Success@1,Success@2,RR@10"))
    out = capsys.readouterr().out
    assert f"1 of 4 queries have no answers in {files['answers']} and are left out" in out
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in out.split("\n") if "|" in line]
    assert rows[2:] == [
        [str(files["baseline"]), "0.000", "0.333", "0.278"],
        [str(files["run"]), "0.333", "0.667", "0.500"],
    ]
    assert "paired t-test over 3 queries" in out
    del files["baseline"]
    run("evaluate", *words(**files))
    assert "| Success@5 (R@5) | Success@20 (R@20) | Success@100 |" in capsys.readouterr().out


def test_what_does_not_fit_is_refused(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files.pop("baseline")
    others = {"passages": "p1\ta\np2\tb\n", "queries": "q1\tsomething else\n"}
    for name, content in others.items():
        other = files[name].with_name("other")
        other.write_text(content)
        assert fails("evaluate", *words(**files | {name: other})) == 2
    told = capsys.readouterr().err
    assert "1 passages of the run are not in" in told
    assert "their texts have to be the same" in told
    without = {name: path for name, path in files.items() if name != "passages"}
    for flags in (without, {"run": files["run"]}, files | {"qrels": files["queries"]}):
        assert fails("evaluate", *words(**flags)) == 2


def fails(*line: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run(*line)
    return ended.value.code
