r"""Compares an answer with a reference: strict and typed. Pure.

The reference says what kind of thing is due: a letter, words, an exact number, a decimal, a tuple or interval, a set, a
list, an equation, an expression. Another kind is wrong. Integers and fractions are exact; only a decimal that is no whole
number has a tolerance; tuples and intervals keep order and brackets; sets and bare lists are compared in any order, item by
item. What needs algebra goes to `symbolic`, which the caller provides: on the event loop one that refuses, in a worker
the library.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.latex import (
    MAX_CHARACTERS,
    normalized,
    plain_words,
    plus_minus_both,
    split_top_level,
    unit_form,
    without_unit,
)
from troupe_orchestrator.grading.numbers import PlainNumber, read_number

Symbolic = Callable[[str, str, float | None], bool]
"""`symbolic(reference, answer, tolerance)`: are two expressions equal; exactly, or within an absolute tolerance?"""

_MAX_DEPTH = 40
"""Deepest nesting of brackets: beyond it the library's grammar is slow, and no answer is near it."""
_MAX_ITEMS = 64
"""Longest list that is compared item by item."""
_RELATIVE_TOLERANCE = Fraction(1, 1_000_000)
_LETTER = re.compile(r"\(?([A-Z])\)?\.?")
_BASED = re.compile(r"[0-9A-Z]+\s*_\s*\{?\s*\d+\s*\}?")
_PREFIX = re.compile(r"^\s*\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\s*\(\s*[a-z]\s*\))?\s*(?:=|\\in(?![a-z]))\s*(?=\S)")
_RELATION = re.compile(r"=|<|>|\\(?:leq?|geq?|neq?|approx|equiv|lt|gt)(?![a-zA-Z])")
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{3,}")
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "exp",
        "sqrt",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "max",
        "min",
        "gcd",
        "lcm",
        "frac",
    ]
)
_OPENING, _CLOSING = "([{", ")]}"


class LibraryNeededError(Exception):
    """The comparison needs algebra, which does not run here."""


def no_library(reference: str, answer: str, tolerance: float | None) -> bool:
    """The `symbolic` of the event loop."""
    raise LibraryNeededError


def never_equal(reference: str, answer: str, tolerance: float | None) -> bool:
    """The `symbolic` of a comparison that is as written: what would need algebra is different."""
    return False


def is_correct(reference: MathReference, answer: str, symbolic: Symbolic) -> bool:
    """Whether an answer is the reference's value, or holds all of its values.

    Raises:
        LibraryNeededError: by `symbolic`.
    """
    if isinstance(reference.answer, str) and not reference.multiple:
        # Most answers are plain numbers: no need to look at them as LaTeX first.
        number, found = read_number(reference.answer), read_number(answer.strip())
        if number is not None and found is not None:
            return abs(found.value - number.value) <= _allowed(number, reference.tolerance)
    if not is_gradeable(answer):
        return False
    answer = _in_unit_of(reference, answer)
    values = reference.values
    if reference.multiple and len(values) == 1:
        values = tuple(_items(normalized(values[0].replace("$", " "))))
        if len(values) == 1:
            # A list of one item may be written as `a = ...` or with both signs.
            values = (reference.values[0],)
    if len(values) > 1:
        return _same_items(values, _items_like(values, answer), reference.tolerance, symbolic)
    return same_value(values[0], answer, reference.tolerance, symbolic)


def is_gradeable(answer: str) -> bool:
    """Whether a text is short and flat enough to be an answer, so that looking at it takes bounded time."""
    return len(answer) <= MAX_CHARACTERS and _depth(answer) <= _MAX_DEPTH


def same_value(reference: str, answer: str, tolerance: float | None, symbolic: Symbolic) -> bool:
    """Whether an answer is the one value of a reference. Both are gradeable.

    Args:
        tolerance: absolute, for a decimal reference; None is 1e-6 of it, at most half a unit of its last digit.
    """
    due, given = normalized(reference), normalized(answer)
    if not due or not given:
        return False
    if due == given:
        return True
    letter = _LETTER.fullmatch(plain_letter(due))
    if letter is not None:
        found = _LETTER.fullmatch(plain_letter(given))
        return found is not None and found.group(1) == letter.group(1)
    if _is_words(due):
        return plain_words(due) == plain_words(given)
    due, due_unit = without_unit(due)
    given, given_unit = without_unit(given)
    if due_unit and given_unit and due_unit != given_unit:
        return False
    due, given = _without_prefixes(due, given)
    number = read_number(due)
    if number is not None:
        return _same_number(number, due, given, tolerance, symbolic)
    if _BASED.fullmatch(due) or _BASED.fullmatch(given):
        return _compact(due) == _compact(given)
    return _compact(due) == _compact(given) or _same_structure(due, given, tolerance, symbolic)


def plain_letter(text: str) -> str:
    r"""A text without `\text{}` around it, case kept."""
    return re.sub(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{\s*([^{}]*?)\s*\}", r"\1", text).strip()


def _same_number(number: PlainNumber, due: str, given: str, tolerance: float | None, symbolic: Symbolic) -> bool:
    allowed = _allowed(number, tolerance)
    found = read_number(given)
    if found is not None:
        return abs(found.value - number.value) <= allowed
    if _BASED.fullmatch(given) or not _is_mathematics(due, given) or len(split_top_level(given)) > 1:
        return False
    return symbolic(due, given, float(allowed) if allowed else None)


def _allowed(number: PlainNumber, tolerance: float | None) -> Fraction:
    """Largest difference from a reference that is this number: 0 unless it is a decimal."""
    if number.half_unit is None:
        return Fraction(0)
    if tolerance is not None:
        return Fraction(tolerance)
    return min(abs(number.value) * _RELATIVE_TOLERANCE, number.half_unit)


def _same_structure(due: str, given: str, tolerance: float | None, symbolic: Symbolic) -> bool:
    """Tuples, intervals, sets and lists item by item; all else by algebra."""
    brackets = _brackets(due)
    if brackets is not None:
        if _brackets(given) != brackets:
            return False
        inner_due, inner_given = split_top_level(_inside(due)), split_top_level(_inside(given))
        if brackets == (r"\{", r"\}"):
            return _same_items(inner_due, inner_given, tolerance, symbolic)
        return len(inner_due) == len(inner_given) and all(
            same_value(one, other, tolerance, symbolic) for one, other in zip(inner_due, inner_given, strict=True)
        )
    due_items, given_items = _items(due), _items(given)
    if len(due_items) > 1 and not _RELATION.search(due):
        return _same_items(due_items, _items(given), tolerance, symbolic)
    if len(due_items) != len(given_items) or not _is_mathematics(due, given):
        return False
    if bool(_RELATION.search(due)) != bool(_RELATION.search(given)):
        return False
    return symbolic(due, given, None)


def _same_items(due: Sequence[str], given: Sequence[str], tolerance: float | None, symbolic: Symbolic) -> bool:
    """Each due item is found once, and nothing else is given."""
    if len(due) != len(given) or len(due) > _MAX_ITEMS:
        return False
    left = list(given)
    for item in due:
        # Equal as written comes first, so that algebra is asked only for what is left.
        match = next((other for other in left if same_value(item, other, tolerance, never_equal)), None)
        if match is None:
            match = next((other for other in left if same_value(item, other, tolerance, symbolic)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _items(text: str) -> list[str]:
    r"""The items of a list, with the braces of a set taken off and both values of each `\pm`."""
    if _brackets(text) == (r"\{", r"\}"):
        text = _inside(text)
    return [value for item in split_top_level(text) for value in plus_minus_both(item)]


def _items_like(due: Sequence[str], answer: str) -> list[str]:
    """The items of an answer, where `1,200` may be one number or two: as many as are due, if that can be."""
    items = _items(_PREFIX.sub("", normalized(answer)) if len(split_top_level(answer)) > 1 else normalized(answer))
    if len(items) != len(due):
        apart = _items(normalized(answer.replace(",", ", ")))
        return apart if len(apart) == len(due) else items
    return items


def _in_unit_of(reference: MathReference, answer: str) -> str:
    """The answer without the unit that the question asks in."""
    if reference.unit is None:
        return answer
    given = normalized(answer)
    value, unit = without_unit(given)
    if unit and unit == unit_form(reference.unit):
        return value
    plain = normalized(reference.unit)
    return given.removesuffix(plain).rstrip() if plain and given != plain else answer


def _without_prefixes(due: str, given: str) -> tuple[str, str]:
    r"""Without `x =` or `x \in`, where only one side has it."""
    due_value, given_value = _PREFIX.sub("", due, count=1), _PREFIX.sub("", given, count=1)
    if (due_value == due) != (given_value == given) and not _RELATION.search(due_value + given_value):
        return due_value, given_value
    return due, given


def _brackets(text: str) -> tuple[str, str] | None:
    """The pair of brackets around a whole text that holds several items, or around a set."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return (r"\{", r"\}") if _closes_at_end(text[1:-2] + "}") else None
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or not _closes_at_end(text):
        return None
    return (text[0], text[-1]) if len(split_top_level(text[1:-1])) > 1 else None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth -= 1
    return deepest


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that a text begins with closes with its last character. `[0,1)` counts as one pair."""
    depth = 0
    for index, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
            if depth == 0:
                return index == len(text) - 1
    return False


def _inside(text: str) -> str:
    return text[2:-2] if text.startswith(r"\{") else text[1:-1]


def _is_words(due: str) -> bool:
    """Whether a reference is text: nothing but words, at least one of them of three letters."""
    return plain_words(due).replace(" ", "").replace("-", "").replace("'", "").isalpha() and (
        r"\text" in due or r"\mbox" in due or (_WORD.search(due) is not None and "\\" not in due)
    )


def _is_mathematics(due: str, given: str) -> bool:
    """Whether an answer has no words but those of functions and of the reference."""
    words = set(_WORD.findall(plain_letter(given))) - _FUNCTIONS
    return words <= set(_WORD.findall(plain_letter(due)))


def _compact(text: str) -> str:
    return (
        re.sub(r"[\s{}]|\\(?=\s)", "", text)
        if _BASED.fullmatch(text)
        else re.sub(r"(?<![a-zA-Z])\s+|\s+(?![a-zA-Z])", "", text)
    )
