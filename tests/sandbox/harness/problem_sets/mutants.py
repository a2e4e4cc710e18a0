"""Small changes to a program, one at a time, of the kinds that mutation testing uses. Pure; the order is the source's.

Kinds: `comparison` (`<` becomes `<=`, …), `arithmetic` (`+` becomes `-`, …), `constant` (one more, one less, the other
truth value, the empty text), `condition` (negated), `logic` (`and` becomes `or`, `not` goes), `return_value` (None), and
`off_by_one` (bounds of `range`, indices, slices).
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
# Types are read by nobody when a program runs.
NOT_RUN = {"annotation", "returns"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A program that differs from its original in one place, at `line` of the original."""

    kind: str
    line: int
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a program, each once."""
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for node, put in list(_places(tree)):
        for kind, changed in _changes(node):
            put(changed)
            text = ast.unparse(ast.fix_missing_locations(tree))
            put(node)
            if text not in seen:
                seen.add(text)
                yield Mutant(kind, getattr(node, "lineno", 0), text)


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    """Each node with what replaces it."""
    for parent in ast.walk(tree):
        # A text that stands alone is a comment.
        if isinstance(parent, ast.Expr) and isinstance(parent.value, ast.Constant):
            continue
        for field, value in ast.iter_fields(parent):
            if field in NOT_RUN:
                continue
            if isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, ast.AST):
                        yield child, partial(value.__setitem__, index)
            elif isinstance(value, ast.AST):
                yield value, partial(setattr, parent, field)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(left, operators, comparators):
            for index, operator in enumerate(operators):
                other = [*operators[:index], COMPARISONS[type(operator)](), *operators[index + 1 :]]
                yield "comparison", ast.Compare(left, other, comparators)
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.AugAssign(target, operator, value) if type(operator) in ARITHMETIC:
            yield "arithmetic", ast.AugAssign(target, ARITHMETIC[type(operator)](), value)
        case ast.UnaryOp(ast.USub(), operand):
            yield "arithmetic", operand
        case ast.Constant(bool() as value):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.Constant(str() as value) if value:
            yield "constant", ast.Constant("")
        case ast.If() | ast.While() | ast.IfExp():
            yield "condition", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.comprehension(ifs=[_, *_] as conditions):
            for index, test in enumerate(conditions):
                negated = [*conditions[:index], ast.UnaryOp(ast.Not(), test), *conditions[index + 1 :]]
                yield "condition", _with(node, ifs=negated)
        case ast.BoolOp(operator, values):
            yield "logic", ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield "logic", operand
        case ast.Return(value) if value is not None:
            yield "return_value", ast.Return(ast.Constant(None))
        case ast.Call(ast.Name("range"), [*bounds], []) if bounds and not isinstance(bounds[0], ast.Starred):
            stop = 0 if len(bounds) == 1 else 1
            for step in (ast.Add(), ast.Sub()):
                moved = ast.BinOp(bounds[stop], step, ast.Constant(1))
                yield "off_by_one", _with(node, args=[*bounds[:stop], moved, *bounds[stop + 1 :]])
        case ast.Slice():
            for name in ("lower", "upper"):
                if (bound := getattr(node, name)) is not None:
                    yield "off_by_one", _with(node, **{name: ast.BinOp(bound, ast.Add(), ast.Constant(1))})
        case ast.Subscript(_, ast.Name() | ast.BinOp() as index):
            yield "off_by_one", _with(node, slice=ast.BinOp(index, ast.Add(), ast.Constant(1)))


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    """A copy of the node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})
