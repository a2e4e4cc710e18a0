"""What algebra is not asked about: expressions whose comparison would not end. Pure; looks at sizes, evaluates nothing.

A final answer is a value in closed form. An integral or sum that is left to be computed is none, unless the reference has
one too; nor is a number of more digits than could be written down. And two expressions that differ at a point are
different, which is found out in milliseconds where `simplify` may take minutes.
"""

import math
from typing import Any

import sympy

MAX_DIGITS = 20_000.0
_LEFT_TO_COMPUTE = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
_DIGITS = 20
_SAME = 1e-9


def within_reach(due: Any, given: Any) -> bool:
    """Whether an answer is a closed form of bounded size."""
    if not isinstance(given, sympy.Basic):
        return True
    if given.has(*_LEFT_TO_COMPUTE) and not (isinstance(due, sympy.Basic) and due.has(*_LEFT_TO_COMPUTE)):
        return False
    return all(_digits(part) <= MAX_DIGITS for part in sympy.preorder_traversal(given) if part.is_number)


def differ_at_a_point(due: Any, given: Any) -> bool:
    """Whether two expressions have different values at one arbitrary point; False also where they have none."""
    if not isinstance(due, sympy.Expr) or not isinstance(given, sympy.Expr):
        return False
    symbols = sorted(due.free_symbols | given.free_symbols, key=str)
    point = {symbol: sympy.Float(f"0.{37 + 11 * index}", _DIGITS) for index, symbol in enumerate(symbols)}
    one, other = due.evalf(_DIGITS, subs=point), given.evalf(_DIGITS, subs=point)
    if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
        return False
    difference = abs(one - other)
    return bool(difference.is_number and difference > _SAME * (1 + abs(one)))


def _digits(number: Any) -> float:
    """About how many digits the integer part of a number has; at least 0."""
    if isinstance(number, sympy.Integer):
        return abs(int(number)).bit_length() * math.log10(2)
    if isinstance(number, sympy.Rational):
        return max(_digits(sympy.Integer(number.p)), _digits(sympy.Integer(number.q)))
    if isinstance(number, sympy.Float):
        return max(0.0, float(sympy.log(abs(number), 10))) if number.is_finite and number else 0.0
    if isinstance(number, sympy.Pow):
        return _digits(number.base) * _magnitude(number.exp) if number.base != sympy.E else _magnitude(number.exp)
    if isinstance(number, sympy.factorial | sympy.gamma | sympy.factorial2):
        size = _magnitude(number.args[0])
        return size * math.log10(size + 1) if math.isfinite(size) else math.inf
    if isinstance(number, sympy.binomial):
        return max(1.0, _magnitude(number.args[0]))
    if isinstance(number, sympy.exp):
        return _magnitude(number.args[0])
    if isinstance(number, sympy.Mul):
        return math.fsum(_digits(factor) for factor in number.args)
    return max((_digits(part) for part in number.args), default=1.0) + 1.0


def _magnitude(number: Any) -> float:
    """About |number|, infinite beyond what would matter."""
    digits = _digits(number)
    return 10.0**digits if digits < 8 else math.inf
