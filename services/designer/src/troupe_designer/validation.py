"""Says why a script cannot be run, by parsing it. Pure; it is neither run nor changed."""

import ast
import warnings
from dataclasses import dataclass
from enum import Enum
from typing import Final

LIBRARY: Final = "workflow"


class ProblemKind(Enum):
    """What is wrong."""

    NO_SCRIPT = "no script"
    SYNTAX = "syntax"
    NO_WORKFLOW = "no workflow"
    TOO_LONG = "too long"
    # The question left no room in the context to sample a design.
    CONTEXT_OVERFLOW = "context overflow"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason, with the 1-based line of the script it concerns, 0 if none."""

    kind: ProblemKind
    message: str
    line: int = 0


def find_problems(script: str, max_characters: int) -> tuple[Problem, ...]:
    """Why the script cannot be run; empty if it can."""
    if not script.strip():
        return (Problem(ProblemKind.NO_SCRIPT, "the reply holds no script: it is due between <code> and </code>"),)
    if len(script) > max_characters:
        return (
            Problem(ProblemKind.TOO_LONG, f"the script has {len(script)} characters, the limit is {max_characters}"),
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a script may well contain
            tree = ast.parse(script)
    except SyntaxError as error:
        return (Problem(ProblemKind.SYNTAX, error.msg, error.lineno or 0),)
    except (ValueError, RecursionError, MemoryError) as error:
        # A null byte, or nesting deeper than the parser goes.
        return (Problem(ProblemKind.SYNTAX, f"{type(error).__name__}: {error or 'nested too deeply'}"),)
    if not any(_imports_library(node) for node in ast.walk(tree)):
        return (Problem(ProblemKind.NO_WORKFLOW, f"the script imports nothing from {LIBRARY}"),)
    return ()


def _imports_library(node: ast.AST) -> bool:
    match node:
        case ast.Import(names):
            return any(alias.name.split(".")[0] == LIBRARY for alias in names)
        case ast.ImportFrom(module=str(module), level=0):
            return module.split(".")[0] == LIBRARY
        case _:
            return False
