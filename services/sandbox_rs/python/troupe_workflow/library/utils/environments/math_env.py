"""Python as a tool, under the path that scripts import it from."""

# Type checkers that see the package troupe_workflow do not see the top-level names that scripts use.
from workflow.math_environment import (  # type: ignore[import-not-found, unused-ignore]
    MathEnvironment,
    python_execute,
)

__all__ = ["MathEnvironment", "python_execute"]
