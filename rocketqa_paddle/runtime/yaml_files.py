"""Reading YAML: plain values alone, a bounded amount of work, and the file and line of every mistake."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 200_000
LARGEST_TREE = 20_000
"""Bytes of a file, and values in it where every alias counts as what it stands for. Settings need a few
thousand bytes; an alias of aliases of 300 bytes can stand for millions of values."""
_PLAIN = {
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
}
_FLOAT = r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"


class _Loader(yaml.SafeLoader):
    """Reads `1e-5` as a number, which YAML 1.1 does not, and no dates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":float"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{_FLOAT})$"), list("-+0123456789."))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the values of a YAML file by their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML in UTF-8, has a name twice, an alias of too much or no names at all; the
            message has the file and the line.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"{path}: {'this is a folder' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path}: more than {LARGEST_FILE} bytes, which is no file of settings")
    values = parse_yaml(_decoded(path, content), str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise ValueError(f"{path}: expected lines of NAME: VALUE, found {found}")
    return values


def _decoded(path: Path, content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}: UTF-16; convert the file, e.g. iconv -f UTF-16 -t UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8, so it is no YAML file") from None


def parse_yaml(text: str, name: str = "value") -> Any:
    """Return what a YAML text says; `name` stands before the line in errors.

    Raises:
        ValueError: see `read_yaml`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for problem in _problems(loader, node):
            raise problem
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        told = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{where}: not YAML ({told})") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{name}:{line}: not YAML ({error.reason})") from None
    except RecursionError:
        raise ValueError(f"{name}: values inside of values, too deep to be settings") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{name}: not YAML ({error})") from None


def _problems(loader: _Loader, root: yaml.Node) -> Iterator[yaml.MarkedYAMLError]:
    """What is wrong in a tree of nodes, of which an alias is the same node again."""
    pending, count = [root], 0
    while pending:
        node = pending.pop()
        count += 1
        if count > LARGEST_TREE:
            yield _wrong(f"aliases that stand for more than {LARGEST_TREE} values", node)
        if node.tag not in _PLAIN:
            yield _wrong(f"{node.tag} is no kind of value that settings have", node)
        if isinstance(node, yaml.MappingNode):
            names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for number, (key, value) in enumerate(node.value):
                if not isinstance(key, yaml.ScalarNode):
                    yield _wrong("a name that is not a text", key)
                elif (key.tag, key.value) in names[:number]:
                    yield _wrong(f"{_cut(key.value)!r} for the second time", key)
                pending += key, value
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif (
            not node.tag.endswith(":str")
            and loader.resolve(type(node), node.value, (True, False)) != node.tag
        ):
            yield _wrong(f"{_cut(node.value)!r} is no {node.tag.rpartition(':')[2]}", node)


def _wrong(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
