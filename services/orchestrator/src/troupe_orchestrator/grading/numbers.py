r"""Reads plain numbers exactly: integers, decimals, powers of ten, fractions. Pure; no floating point."""

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_DIGITS = 1_000
_MAX_EXPONENT = 400
_NUMBER = re.compile(
    r"([+-]?)\s*(\d+)?(?:\.(\d+))?(?:[eE]([+-]?\d{1,4})|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,4})\s*\}|(\d)))?",
    re.ASCII,
)
_FRACTION = re.compile(r"([+-]?)\s*(?:\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d+)\s*/\s*(\d+))", re.ASCII)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as written."""

    value: Fraction
    half_unit: Fraction | None
    """Half a unit of the last digit for a decimal that is no whole number, or one with a power of ten; else None: exact."""


def read_number(text: str) -> PlainNumber | None:
    """The number that the whole text is, None if it is something else or has more digits than any answer."""
    if len(text) > _MAX_DIGITS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is not None:
        return _decimal(match)
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    sign, *parts = match.groups()
    numerator, denominator = (int(part) for part in parts if part is not None)
    if denominator == 0:
        return None
    value = Fraction(numerator, denominator)
    return PlainNumber(-value if sign == "-" else value, None)


def _decimal(match: re.Match[str]) -> PlainNumber | None:
    sign, whole, decimals, *exponents = match.groups()
    if whole is None and decimals is None:
        return None
    exponent = int(next((found for found in exponents if found is not None), "0"))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    unit = Fraction(10) ** (exponent - len(decimals or ""))
    value = int((whole or "") + (decimals or "")) * unit
    exact = value.denominator == 1 and all(found is None for found in exponents)
    return PlainNumber(-value if sign == "-" else value, None if exact else unit / 2)
