"""How the output of a solution is judged, where the name of a comparison is not enough.

By name: `lines` (equal up to white space at line ends and blank lines at the end), `tokens` (equal as lists of tokens),
`float_tokens` (tokens; decimals may be off by 1e-6, absolute or relative), `unordered_lines` (the same lines in any order),
`exact` (byte for byte).
"""

from dataclasses import dataclass
from typing import TypeAlias

from .reports import Limits


@dataclass(frozen=True)
class FloatTokens:
    """Tokens, of which two that are both decimals may differ: by either of the two, of which one is above 0.

    Two integers may not differ, and a decimal is never taken for an expected integer that it misses by 0.5 or more.

    Attributes:
        absolute: how far a number may be off, in its own unit.
        relative: the same as a share of the expected number's size.
    """

    absolute: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True)
class CheckerProgram:
    """Python that judges one output, in a sandboxed process of its own.

    It finds the open text files `stdin`, `expected` and `actual`, accepts by reaching its end, and rejects by a failed
    assertion, whose text becomes the case's detail. However else it ends is a failure of the checker, raises SandboxError
    and says nothing about the solution.

    Attributes:
        source: the program.
        limits: of each of its runs.
    """

    source: str
    limits: Limits | None = None


Checker: TypeAlias = str | FloatTokens | CheckerProgram
