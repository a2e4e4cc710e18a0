"""The scripting library that designs import inside the sandbox.

`LIBRARY` is the folder that goes on the search path of the process that runs a script: in it lie the
top-level packages `workflow` and `utils`, under the names that scripts import. They are pure standard
library, and importing them starts no thread and opens nothing, so that a zygote can hold them and fork.
Outside the sandbox only the pure parts are of use, for example `troupe_workflow.library.workflow.prompts`,
which says word for word what an agent is shown.
"""

from pathlib import Path

LIBRARY: Path = Path(__file__).parent / "library"

__all__ = ["LIBRARY"]
