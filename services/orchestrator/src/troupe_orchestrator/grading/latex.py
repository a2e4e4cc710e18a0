r"""Brings LaTeX answers to one form without changing what they say. Pure, and cheap enough for the event loop.

Dollar signs, spacing commands, sizes of brackets and of fractions, thousands separators, final punctuation and units say
nothing about the value. What is left is compared as a value or handed to the library.
"""

import re
from functools import lru_cache

MAX_CHARACTERS = 2_000
"""Longest answer that is graded; no reference comes near it."""

_WRAPPERS = re.compile(r"\\\(|\\\)|\\\[|\\\]|(?<!\\)\$")
_SPACING = re.compile(
    r"\\[,;:! ]|\\(?:quad|qquad|displaystyle|limits)(?![a-zA-Z])|~|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d})\]a-z])\s*\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*\{?[-\d]+\}?)?\s*$")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_PLAIN_TEXT = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty "})


@lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    """One form for all ways to write the same thing. Empty for a text that says nothing."""
    text = _WRAPPERS.sub("", text.translate(_PLAIN_TEXT))
    text = text.replace("{,}", ",").replace(r"\$", "").replace(r"\%", "%")
    text = re.sub(r",\s*\\!", ",", text)
    text = _SPACING.sub(lambda match: " " if match.group() in (r"\ ", "~", r"\quad", r"\qquad") else "", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _DEGREES.sub("", text)
    text = " ".join(text.split()).rstrip(" .,;:")
    text = text.removesuffix("%").rstrip()
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


def without_unit(text: str) -> tuple[str, str]:
    """A normalised text without the unit at its end, and that unit in one form (empty if there is none)."""
    match = _UNIT.search(text)
    if match is None:
        return text, ""
    return text[: match.start()].rstrip(" ,"), unit_form(match.group())


def unit_form(unit: str) -> str:
    """A unit in one form: lower case, no braces, no plural."""
    plain = re.sub(r"\\(?:text|textrm|mathrm|mbox)|[{}\\$\s.]", "", unit).lower()
    return plain.removesuffix("s") if len(plain) > 3 else plain


def plain_words(text: str) -> str:
    r"""The words of a text, lower case, without `\text{}` around them."""
    return " ".join(re.sub(r"[{}\\]", " ", _TEXT.sub(r" \1 ", text)).lower().split()).strip(" .")


def split_top_level(text: str) -> list[str]:
    r"""The parts between commas, semicolons and `and`, `or` that stand in no bracket."""
    text = re.sub(
        r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])",
        ",",
        text,
    )
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(0, depth - 1)
        elif character in ",;" and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def plus_minus_both(text: str) -> tuple[str, ...]:
    r"""Both values of a text with one `\pm`; the text itself otherwise."""
    if text.count(r"\pm") != 1:
        return (text,)
    before, after = text.split(r"\pm")
    return (f"{before}+{after}" if before.strip() else after.strip(), f"{before}-{after.strip()}")
