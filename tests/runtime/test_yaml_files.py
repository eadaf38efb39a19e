"""YAML: values as they are written, a bounded amount of work, and the file and line of every mistake."""

from __future__ import annotations

import string

import pytest

from rocketqa_paddle.runtime.yaml_files import LARGEST_FILE, parse_yaml, read_yaml


def bomb() -> str:
    """Some 300 bytes that stand for 9 ** 9 values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip(string.ascii_lowercase[:8], string.ascii_lowercase[1:], strict=False):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


def test_values_are_read(tmp_path):
    file = tmp_path / "settings.yaml"
    shared = "first: &rate {rate: 1e-5}\nsecond: *rate\nthird: {<<: *rate, steps: 5}\n"
    file.write_text(f"\ufeff{shared}day: 2020-01-01\nyes: [no, .5, 1.0e-3, 0x10, null, '3']\r\n", "utf-8")
    assert read_yaml(file) == {
        "first": {"rate": 1e-5},
        "second": {"rate": 1e-5},
        "third": {"rate": 1e-5, "steps": 5},
        "day": "2020-01-01",
        True: [False, 0.5, 1e-3, 16, None, "3"],
    }
    assert parse_yaml("") is None
    assert parse_yaml("[1, .inf]") == [1, float("inf")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\n\tb: 2\n", ":2: not YAML (while scanning for the next token, found character '\\t'"),
        ("a: 1\nb: {c: 2, d: 3, c: 4}\n", ":2: not YAML ('c' for the second time)"),
        ("a: 1\nb: [\n", ":3: not YAML"),
        ("a: 1\nb: *none\n", ":2: not YAML (found undefined alias 'none')"),
        (bomb(), "aliases that stand for more than 20000 values)"),
        ("a: &a {b: *a}\n", "aliases that stand for more than 20000 values)"),
        ("a: " + "[" * 5000, ": values inside of values, too deep"),
        ("a: !!python/name:os.system\n", ":1: not YAML (tag:yaml.org,2002:python/name:os.system is no kind"),
        ("a: !!bool maybe\n", ":1: not YAML ('maybe' is no bool)"),
        ("a: 1\n? [b]\n: 2\n", ":2: not YAML (a name that is not a text)"),
        ("a: " + "9" * 5000, ": not YAML (Exceeds the limit (4300"),
        ("a: 1\nb: \x00\n", ":2: not YAML (special characters are not allowed)"),
        (b"a: 1\nb: \xff\n", ":2: byte 0xff is not UTF-8"),
        ("a: 1\n".encode("utf-16"), ": UTF-16; convert the file, e.g. iconv -f UTF-16 -t UTF-8"),
        ("x" * (LARGEST_FILE + 1), ": more than 200000 bytes"),
        ("", ": expected lines of NAME: VALUE, found nothing"),
        ("- 1\n", ": expected lines of NAME: VALUE, found a list"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path, content, message):
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        read_yaml(file)
    told = str(error.value)
    assert told.startswith(str(file))
    assert message in told
    assert "\n" not in told
    assert len(told) < 500


def test_what_is_not_there(tmp_path):
    for path, message in ((tmp_path, "this is a folder"), (tmp_path / "x", "no such file")):
        with pytest.raises(FileNotFoundError, match=f"{path}: {message}"):
            read_yaml(path)
