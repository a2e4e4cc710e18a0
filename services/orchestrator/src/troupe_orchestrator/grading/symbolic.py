"""Equality of two expressions by algebra. Runs in worker processes only: the library is slow to import and may hang.

The parser is the library's LaTeX grammar, which evaluates nothing. Decimals become exact fractions first, so that no
rounding of the library's applies: what is equal here is equal, unless the reference is a decimal and brings a tolerance.
"""

import logging
import re
from typing import Any

import sympy
from latex2sympy2_extended import (
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
)
from math_verify import verify
from math_verify.grader import should_treat_as_complex

from troupe_orchestrator.grading.reach import differ_at_a_point, within_reach

# It warns that nobody else limits its time; the worker's parent does.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)


class UnreadableError(ValueError):
    """A text that the library's grammar cannot read."""


def symbolically_equal(reference: str, answer: str, tolerance: float | None) -> bool:
    """Whether two expressions have the same value.

    Args:
        tolerance: absolute, for a reference that is a decimal; None is exact.

    What the grammar cannot read is equal to nothing but the same text, which the caller has compared already.

    Raises:
        MemoryError: as far as the library lets it through.
    """
    try:
        due, given = _parsed(reference), _parsed(answer)
    except UnreadableError:
        return False
    if not within_reach(due, given):
        return False
    if tolerance is not None:
        return _within(due, given, tolerance)
    due, given = _exact(due), _exact(given)
    return not differ_at_a_point(due, given) and bool(verify(due, given, strict=True, timeout_seconds=None))


def _parsed(text: str) -> Any:
    latex = normalize_latex(text.replace("**", "^"), config=_NORMALIZATION)
    try:
        return latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            convert_degrees=False,
            normalization_config=None,
        )
    except MemoryError:
        raise
    except Exception as error:  # the grammar raises whatever sympy and antlr raise, bare Exception among them
        raise UnreadableError(f"cannot read {text!r:.200}: {error!s:.200}") from error


def _exact(expression: Any) -> Any:
    if not isinstance(expression, sympy.Basic):
        return expression
    return expression.xreplace(
        {number: sympy.Rational(re.sub(r"0+$", "", str(number))) for number in expression.atoms(sympy.Float)}
    )


def _within(due: Any, given: Any, tolerance: float) -> bool:
    difference = sympy.N(due - given) if isinstance(due, sympy.Expr) and isinstance(given, sympy.Expr) else None
    return difference is not None and bool(difference.is_number) and bool(abs(difference) <= tolerance)
