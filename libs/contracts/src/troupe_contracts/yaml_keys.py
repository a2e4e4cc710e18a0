"""YAML in which no key is given twice. PyYAML takes the last of them, and what was written before it has no effect."""

from collections.abc import Iterator
from typing import Any

import yaml

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MOST_VALUES = 1_000_000
"""In a text. What an alias stands for counts each time: a short text of aliases can stand for more than memory holds."""


class RepeatedKeysError(ValueError):
    """Keys are given twice; each problem names its key in full and the lines."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key}: {message}" for key, message in problems))


def load_yaml(text: str) -> Any:
    """What a YAML text holds. A key that a merge (`<<`) brings and the mapping has too is the mapping's, as YAML has it.

    Raises:
        RepeatedKeysError: a mapping has a key twice, at whatever depth.
        yaml.YAMLError: it is not YAML.
        ValueError: a value is none, such as a date in the 13th month; or aliases make a value hold itself, or too many.
        RecursionError: it is nested too deeply.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        # Before anything is made of it: that writes merged keys into the nodes.
        if problems := list(_repeated(root, "", set())):
            raise RepeatedKeysError(problems)
        if _values(root, {}) > _MOST_VALUES:
            raise ValueError(
                f"its aliases stand for more than {_MOST_VALUES} values: write less of it, or without aliases"
            )
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _values(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many values a node stands for.

    Args:
        counted: by nodes' identity, 0 for those that this one is in.

    Raises:
        ValueError: one is in itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = 0
        inner = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        counted[id(node)] = 1 + sum(_values(each, counted) for each in inner)
    if not counted[id(node)]:
        raise ValueError(f"what begins on line {node.start_mark.line + 1} holds itself: remove the alias in it")
    return counted[id(node)]


def _repeated(node: yaml.Node, name: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Full names of keys that are there again, and on which lines."""
    # An alias is the node that its anchor has.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _repeated(child, f"{name}.{number}".lstrip("."), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, child in node.value:
            full = f"{name}.{key.value}".lstrip(".") if isinstance(key, yaml.ScalarNode) else name
            yield from _repeated(child, full, seen)
            # Several merges are as good as one of a list. A key that is no scalar cannot be one in Python.
            if key.tag == _MERGE_TAG or not isinstance(key, yaml.ScalarNode):
                continue
            line, identity = key.start_mark.line + 1, (key.tag, key.value)
            if identity in lines:
                yield full, f"is given on line {lines[identity]} and again on line {line}: remove one"
            lines.setdefault(identity, line)
